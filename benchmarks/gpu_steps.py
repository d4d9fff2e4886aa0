"""Measures one call of a model on a GPU: its peers by turns in one process, their memory, their errors and their kernels."""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from diffusers_oneflow import parity

from . import common, gpu_cases, gpu_peers, gpu_profile
from .gpu_device import Device, Memory

# A turn is as many calls as take about so many milliseconds, within these bounds.
_TURN, _FEWEST, _MOST = 150.0, 3, 20
_WIDE = (torch.float64, torch.float32)
Say = Callable[[dict[str, Any]], None]


@torch.no_grad()
def measure(options: dict[str, Any], device: Device, say: Say = lambda report: None) -> dict[str, Any]:
    """What the options ask of one case.

    Args:
        options: case, batch (times the usual one), dtype (None: the case's), peers, repeats, parity, profile (peers), tiny.
        say: called with the report whenever there is more in it: what follows may end the process.
    """
    case = gpu_cases.CASES[options["case"]]
    dtype = getattr(torch, options["dtype"] or case.dtype)
    module = gpu_cases.create(case, device.place, dtype, options["tiny"])
    given = gpu_cases.inputs(case, module, options["tiny"], options["batch"], device.place, dtype)
    report: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "weight_bytes": sum(p.nbytes for p in module.parameters()),
        "flops": sum(gpu_cases.flops(options["case"], options["tiny"], options["batch"]).values()),
        "peers": {peer: {} for peer in options["peers"]},
    }
    if options["profile"]:
        # What records kernels starts before there is a graph, else it may miss those of graphs.
        report["limits"], report["profiler"] = gpu_profile.limits(device, dtype), {}
        with failing(report["profiler"]):
            gpu_profile.start(device)
    found = _Found(device)
    for peer in options["peers"]:
        with failing(report["peers"][peer]), contextlib.ExitStack() as stack:
            ops = stack.enter_context(gpu_profile.counted_ops()) if peer == "oneflow" and options["profile"] else []
            found.build(peer, case, gpu_peers.sharing(module), given, report["peers"][peer])
            report["peers"][peer]["ops"] = ops
        say(report)
    # Not before: what cuDNN has found for torch would spare the others their search.
    base = case.call(module)(**given)[0].clone()
    found.compare(base, report["peers"])
    found.time(options["repeats"], report["peers"])
    say(report)
    for peer in options["profile"]:
        if peer in found.steps:
            with failing(report["peers"][peer]):
                ops = report["peers"][peer]["ops"]
                report["peers"][peer]["profile"] = gpu_profile.profile(device, found.steps[peer], ops, report["limits"])
            say(report)
    for result in report["peers"].values():
        result.pop("ops", None)
    if options["parity"]:
        found.forget()
        with failing(report):
            report["parity"] = against_wide(options["case"], case, module, given, found.made, base, device)
        say(report)
    return report


class _Found:
    """The peers that were built, and what they made.

    Attributes:
        steps, modules, made: by peer.
    """

    def __init__(self, device: Device) -> None:
        self.steps: dict[str, Callable[[], torch.Tensor]] = {}
        self.modules: dict[str, torch.nn.Module] = {}
        self.made: dict[str, torch.Tensor] = {}
        self._device = device

    def build(
        self, peer: str, case: gpu_cases.Case, module: torch.nn.Module, given: dict[str, Any], result: dict[str, Any]
    ) -> None:
        """Seconds to the first result, and memory."""
        device = self._device
        before = device.memory()
        steps = []

        def first() -> None:
            steps.append(gpu_peers.build(peer, case, module, given, device))

        start = time.perf_counter()
        most = device.most_allocated(first)
        result["first_seconds"] = time.perf_counter() - start
        result["built_bytes"] = most - before.allocated
        (step,) = steps
        result["peak"] = asdict(self._peak(step, before))
        made = step().clone()
        result["finite"] = bool(made.isfinite().all())
        print(f"{peer}: first result after {result['first_seconds']:.1f} s", flush=True)
        if peer == "oneflow":
            result["built"] = gpu_peers.built(module)
        self.steps[peer], self.modules[peer], self.made[peer] = step, module, made

    def _peak(self, step: Callable[..., Any], before: Memory) -> Memory:
        for _ in range(3):  # until torch.compile has recorded its graphs
            step()
        return self._device.peak(step) - before

    def compare(self, base: torch.Tensor, results: dict[str, dict[str, Any]]) -> None:
        """The difference of each peer's result from torch's."""
        base = base.double()
        for peer, made in self.made.items():
            results[peer]["difference"] = ((made.double() - base).norm() / base.norm()).item()

    def time(self, repeats: int, results: dict[str, dict[str, Any]]) -> None:
        """Milliseconds of each round."""
        device = self._device
        turns: dict[str, Callable[[], float]] = {}
        for peer, step in self.steps.items():
            once = device.milliseconds(step, 2)
            times = max(_FEWEST, min(_MOST, round(_TURN / max(once, 1e-3))))
            turns[peer] = functools.partial(device.milliseconds, step, times)
        for peer, values in (common.interleave(turns, repeats) if turns else {}).items():
            results[peer]["ms"] = values
            results[peer]["median_ms"] = common.summarize(values)

    def forget(self) -> None:
        """Drop graphs and modules, not what they made."""
        self.steps, self.modules = {}, {}
        torch.compiler.reset()
        self._device.rest()


@contextlib.contextmanager
def failing(result: dict[str, Any]) -> Iterator[None]:
    """What fails is written down, and the others go on."""
    try:
        yield
    except Exception:
        result["failed"] = traceback.format_exc()
        print(result["failed"], flush=True)


def against_wide(
    name: str,
    case: gpu_cases.Case,
    module: torch.nn.Module,
    given: dict[str, Any],
    made: dict[str, torch.Tensor],
    single: torch.Tensor,
    device: Device,
) -> dict[str, Any]:
    """Errors against the same weights in float64, or in float32 where that does not fit; `module` ends up in that dtype.

    Args:
        made: by peer, its result.
        single: torch's result in the dtype that is judged.
    """
    exact, wide = None, None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for wide in _WIDE:
        try:
            # One parameter after the other, so that it need not fit beside what it was.
            exact = case.call(module.to(wide))(**gpu_cases.cast(given, device.place, wide))[0]
            break
        except torch.OutOfMemoryError:
            device.rest()
    if exact is None:
        raise torch.OutOfMemoryError("there is room for the weights neither in float64 nor in float32")
    rows = {peer: parity.worst(name, [result], [single], [exact]) for peer, result in made.items()}
    return {
        "reference": str(wide).removeprefix("torch."),
        "torch": asdict(parity.error(single, exact)),
        "peers": {peer: {"error": asdict(row.ours), "excess": row.excess, "factor": row.factor} for peer, row in rows.items()},
    }
