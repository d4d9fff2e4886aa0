"""Where the time of one call goes: every kernel of the pack and the op that it runs for, with its traffic and arithmetic."""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from . import children, common
from .peers import DTYPES, cast, prepare_pipeline

if TYPE_CHECKING:
    import torch

    from diffusers_oneflow.capture import Program
    from diffusers_oneflow.graph import Place

CASES = {"unet": "unet step", "text": "text encoder", "vae": "vae decode"}
# On its input's memory: what it "reads and writes" never moves.
_VIEW = "dfo_view"
_HEAVY = ("convolution", "linear", "attention")


def measure(model: str, case: str, latent: int, dtype: str, steps: int, peer: str = "oneflow") -> dict[str, Any]:
    """``{"seconds": of each call, "rest": what of each was no kernel, "ops": [a dict for each op]}``, in this fresh process.

    Args:
        case: "unet", "text" or "vae".
        steps: calls that are measured; an op's milliseconds are the median over them.
    """
    from . import models

    pipe = models.pipeline(model)
    cast(peer, pipe, dtype)
    prepare_pipeline(peer, pipe, dtype)
    module = {"unet": pipe.unet, "text": pipe.text_encoder, "vae": pipe.vae.decoder}[case]
    return profile(models.cases(pipe, latent, 1)[CASES[case]], module, steps)


def profile(call: Callable[[], object], module: torch.nn.Module, steps: int) -> dict[str, Any]:
    """What `measure` gives, for `call`, which calls `module`, not yet compiled by OneFlow."""
    from diffusers_oneflow.backend import dispatcher_of
    from diffusers_oneflow.kernels import loader

    with counted_flops() as flops:
        call()
    common.warm_up(call)
    pack = loader.pack()
    if pack is None:
        raise RuntimeError(f"the kernel pack cannot be used: {loader.refusal()}")
    seconds, rest = [], []
    spent: dict[str, list[int]] = {}
    pack.profile(True)
    try:
        for _ in range(steps):
            pack.measured()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
            measured = pack.measured()
            rest.append(seconds[-1] - sum(nanoseconds for _, nanoseconds in measured) / 1e9)
            for name, nanoseconds in measured:
                spent.setdefault(name, []).append(nanoseconds)
    finally:
        pack.profile(False)
    dispatcher = dispatcher_of(module)
    assert dispatcher is not None  # its graphs have run
    places = {name: place for entry in dispatcher.entries for name, place in entry.graph.places.items()}
    ops = [
        {
            "kernel": place.kernel, "op": place.op, "where": place.where, "ms": statistics.median(spent[name]) / 1e6,
            "bytes": 0 if place.kernel == _VIEW else place.bytes, "flops": flops.get(name),
        }
        for name, place in places.items() if name in spent
    ]  # fmt: skip
    return {"seconds": seconds, "rest": rest, "ops": ops}


@contextlib.contextmanager
def counted_flops() -> Iterator[dict[str, int | None]]:
    """Collect the floating-point operations of the pack's heavy ops, by name, of all graphs that are built meanwhile."""
    from diffusers_oneflow.graph import CompiledGraph

    found: dict[str, int | None] = {}
    original = CompiledGraph.__init__

    def init(graph: CompiledGraph, program: Program, *args: Any, **kwargs: Any) -> None:
        original(graph, program, *args, **kwargs)
        found.update(_flops(program, graph.places))

    CompiledGraph.__init__ = init  # type: ignore[assignment,method-assign]  # put back below
    try:
        yield found
    finally:
        CompiledGraph.__init__ = original  # type: ignore[method-assign]  # as it was


def _flops(program: Program, places: dict[str, Place]) -> dict[str, int | None]:
    """Op name -> operations: nodes of the program and ops of the pack for one line of the module come in the same order."""
    from diffusers_oneflow.capture import op_name
    from diffusers_oneflow.provenance import where

    counts: dict[tuple[str, str], list[int | None]] = {}
    names: dict[tuple[str, str], list[str]] = {}
    found: dict[str, int | None] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            operands = [getattr(a, "meta", {}).get("val") for a in node.args]
            counts.setdefault((op_name(node), where(node)), []).append(flops(op_name(node), operands, node.meta.get("val")))
    for name, place in places.items():
        if place.kernel.endswith(_HEAVY):
            names.setdefault((place.op, place.where), []).append(name)
    for key, same in names.items():
        # Unless OneFlow's own kernels run some of them.
        if len(same) == len(counts[key]):
            found.update(zip(same, counts[key]))
    return found


def flops(op: str, operands: list[Any], result: Any) -> int | None:
    """Multiplications and additions of a convolution, a linear layer or attention (causal counts in full); None for others.

    Args:
        operands: what the op takes, tensors or None.
        result: what it makes.
    """
    count: int | None = None
    if "conv2d" in op:
        count = 2 * math.prod(result.shape) * math.prod(operands[1].shape[1:])
    elif "linear" in op:
        # By the weight: a gated layer's result has half its columns.
        count = 2 * math.prod(operands[0].shape[:-1]) * math.prod(operands[1].shape)
    elif "attention" in op:
        # (batch, rows, heads * width) or (batch, heads, rows, width).
        count = 4 * math.prod(operands[0].shape) * operands[1].shape[-2]
    return count


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Kernels with their ops, the slowest first, and what of a call is outside of them."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for op in found["ops"]:
        groups.setdefault((op["kernel"], op["op"]), []).append(op)
    call = 1000 * statistics.median(found["seconds"])
    rows = [_group(*key, ops, call) for key, ops in groups.items()]
    rows.sort(key=lambda row: -row["ms"])
    rest = 1000 * statistics.median(found["rest"])
    return {"call_ms": common.summarize([1000 * s for s in found["seconds"]]), "kernels": rows, "rest_ms": rest}


def _group(kernel: str, op: str, ops: list[dict[str, Any]], call: float) -> dict[str, Any]:
    ms, moved = (sum(o[key] for o in ops) for key in ("ms", "bytes"))
    done = sum(o["flops"] or 0 for o in ops)
    return {
        "kernel": kernel,
        "op": op.removesuffix(".default"),
        "count": len(ops),
        "ms": ms,
        "share": ms / call,
        "bytes": moved,
        "gb_per_second": moved / ms / 1e6 if moved and ms else None,
        "gflop_per_second": done / ms / 1e6 if done and ms else None,
    }


def show(title: str, report: dict[str, Any]) -> None:
    """Print the table."""
    rows = [
        (
            row["kernel"], row["op"], str(row["count"]), f"{row['ms']:.2f}", f"{row['share']:.1%}", f"{row['bytes'] / 1e6:.1f}",
            *(f"{row[key]:.1f}" if row[key] else "" for key in ("gb_per_second", "gflop_per_second")),
        )
        for row in report["kernels"]
    ]  # fmt: skip
    call = report["call_ms"]
    rows.append(("(outside of the pack's kernels)", "", "", f"{report['rest_ms']:.2f}", f"{report['rest_ms'] / call.median:.1%}"))
    note = f"call: {call.show(1, 2)} ms, {call.count} calls; MB: read and written, weights included, as if nothing were cached"
    common.table(title, ("kernel", "op", "count", "ms", "share", "MB", "GB/s", "GFLOP/s"), rows, note)


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if the process failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("demo", "sd15"), default="demo")
    parser.add_argument("--case", choices=tuple(CASES), default="unet")
    parser.add_argument("--latent", type=int, help="latent size (default: 16 for demo, 32 for sd15)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--peer", choices=("oneflow", "oneflow-packed"), default="oneflow")
    parser.add_argument("--repeats", type=int, default=7, help="calls that are measured")
    parser.add_argument("--out", help="folder or .json file for the results; a plot is written beside it")
    options = parser.parse_args(argv)
    latent = options.latent or {"demo": 16, "sd15": 32}[options.model]
    machine = common.machine()
    try:
        found = children.call(measure, options.model, options.case, latent, options.dtype, options.repeats, options.peer)
    except children.ChildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    title = f"{options.model}, {options.dtype}, latent {latent}x{latent}: {CASES[options.case]}, {options.peer}"
    report = summary(found)
    show(title, report)
    name = "-".join(["profile", options.model, options.case, str(latent), options.dtype, options.peer])
    path = common.write(name, {"machine": machine, "title": title, **report, "ops": found["ops"]}, options.out)
    if path is not None:
        from .plots import profile as plot

        plot(title, report, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
