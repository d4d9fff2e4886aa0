"""Single ops: one case for every lowering, made of the calls that its tests in tests/lowering/ compare.

Those tests draw shapes, strides, dtypes and broadcasting at random, the same ones in every run, and add sizes and values at
the edge. OneFlow's graphs hold the op itself, once with OneFlow's own kernels and once with the pack's where it has one;
another backend is given a model that makes the same calls. On another device, or in a half type, the calls are made with their
tensors there; graphs that are replayed hold the op as it is, and what the passes for the pack make of it.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from diffusers_oneflow import engine, judged, nearby
from diffusers_oneflow.parity import FACTOR, FLOOR, HALF_FACTOR, LITTLE, Component, Error, Report, error, pooled
from diffusers_oneflow.replay.device import Plain
from diffusers_oneflow.replay.devices import device_for

from .place import NotApplicable, Place, here
from .registry import Case, add

# Integers, and float64 against itself, are compared with torch's own result: only rounding of the last bits is allowed.
_NO_SCHEMA = torch.ops.aten.neg.default._schema
FLOORS = {torch.float32: FLOOR, torch.float64: 1e-13}
# Calls as the harness of those tests makes them -> the outputs of each.
Make = Callable[[list[Any]], list[list[torch.Tensor]]]


def run(op: str) -> Report:
    """Compare every call; of each kind of kernel and dtype, the report has the call that comes out worst.

    Where one is too far off by a little, 32 other calls like it decide, as for models (`parity`): of so many one is, by chance.

    Raises:
        NotApplicable: torch makes none of them in the dtype of the place.
    """
    from tests.lowering import harness

    worst: dict[str, Component] = {}
    for calls in harness.calls(op):
        calls = calls if here().is_usual else [made for call in calls if (made := _there(call, here())) is not None]
        if not calls:
            continue
        for kernels, make in _ways(op):
            name = f"{op} {kernels}"
            for call, result in zip(calls, make(calls)):
                for number, row in enumerate(_rows(name, call, result)):
                    known = worst.get(row.path)
                    if (known is None or known.passed) and not row.passed and row.excess <= LITTLE:
                        row = _again(row, name, call, make, number)
                    if known is None or row.excess > known.excess:
                        worst[row.path] = row
    if not worst:
        raise NotApplicable(f"torch has no {op} in {here().dtype} on {here().device}")
    return Report([worst[path] for path in sorted(worst)])


def _rows(name: str, call: Any, result: list[torch.Tensor]) -> list[Component]:
    """One for each output.

    Raises:
        ValueError: number, shape or dtype of the outputs differ from torch's.
    """
    if len(result) != len(call.expected):
        raise ValueError(f"{name} gives {len(result)} outputs; torch gives {len(call.expected)}")
    return [judge(name, *values) for values in zip(result, call.expected, call.exact())]


def _again(row: Component, name: str, call: Any, make: Make, number: int) -> Component:
    """What other calls like one say of the output that is too far off there, if its tensors can be others."""
    from tests.lowering import harness

    leaves, spec = tree_flatten((call.args, call.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    others = []
    for tensors in nearby.calls([leaves[i] for i in places], nearby.MORE_CALLS):
        changed = dict(zip(places, tensors))
        args, kwargs = tree_unflatten([changed.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
        others.append(harness.Case(call.op, args, kwargs, here().torch_dtype))
    found = [[_rows(name, other, result)[number]] for other, result in zip(others, make(others))] if others else [[row]]
    return pooled(found)


def _there(call: Any, place: Place) -> Any:
    """A call with its tensors at a place; None where torch itself cannot make it there."""
    from tests.lowering import harness

    def moved(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device(place.device)
        return harness.Weight(place.moved(value.tensor)) if isinstance(value, harness.Weight) else place.moved(value)

    kinds = (torch.Tensor, harness.Weight, torch.dtype, torch.device)
    args, kwargs = tree_map_only(kinds, moved, (call.args, call.kwargs))
    # Factories make their tensors there.
    if any(a.name == "device" and a.kwarg_only for a in getattr(call.target, "_schema", _NO_SCHEMA).arguments):
        kwargs["device"] = torch.device(place.device)
    try:
        return harness.Case(call.op, args, kwargs, place.torch_dtype)
    except (RuntimeError, NotImplementedError):
        return None


def judge(name: str, result: torch.Tensor, by_torch: torch.Tensor, exact: torch.Tensor) -> Component:
    """One output: where torch's is not finite the other has to be equal, elsewhere errors are measured in float64.

    Raises:
        ValueError: shape or dtype differ from torch's.
    """
    if (result.shape, result.dtype) != (by_torch.shape, by_torch.dtype):
        raise ValueError(f"{name} gives {result.dtype} {tuple(result.shape)}, torch {by_torch.dtype} {tuple(by_torch.shape)}")
    path = f"{name} {str(by_torch.dtype).removeprefix('torch.')}"
    if not by_torch.dtype.is_floating_point:
        return Component(path, Error(0.0, 0.0), _distance(result, by_torch), FACTOR, 0.0)
    finite = by_torch.isfinite()
    if not torch.equal(result[~finite].nan_to_num(12.0), by_torch[~finite].nan_to_num(12.0)):
        return Component(path, Error(0.0, 0.0), Error(float("inf"), float("inf")))
    factor = HALF_FACTOR if by_torch.dtype == here().torch_dtype != torch.float32 else FACTOR
    theirs, ours = (_distance(t[finite], exact[finite]) for t in (by_torch, result))
    return Component(path, theirs, ours, factor, FLOORS.get(by_torch.dtype, FLOOR))


def _distance(result: torch.Tensor, reference: torch.Tensor) -> Error:
    return error(result, reference) if result.numel() else Error(0.0, 0.0)


def _ways(op: str) -> Iterator[tuple[str, Make]]:
    """``(kind of kernels, what makes the outputs of each call)``, of all calls in one graph."""
    from diffusers_oneflow import kernels
    from diffusers_oneflow.kernels import loader
    from tests.lowering import harness

    if judged.name() != "oneflow":
        yield judged.name(), _by_backend
        return
    if here().elsewhere:
        device = Plain("cpu") if here().replay else device_for(here().torch_device)
        yield "(op)", functools.partial(harness.run, device=device)
        yield "(passes)", functools.partial(harness.run, native=True, device=device)
        return
    yield "(OneFlow)", harness.run
    if not loader.refusal() and kernels.find(op)[0] is not None:
        yield "(pack)", functools.partial(harness.run, native=True)


@torch.no_grad()
def _by_backend(calls: list[Any]) -> list[list[torch.Tensor]]:
    model = Calls(calls).eval()
    pipe = judged.Alone(model)
    judged.attach(pipe)
    try:
        made: list[list[torch.Tensor]] = pipe.model(*model.inputs)
        return made
    finally:
        judged.detach(pipe)


class Calls(torch.nn.Module):
    """Independent calls of ops as one model: tensors are its inputs, what graphs keep its parameters."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        from tests.lowering import harness

        self.inputs: list[torch.Tensor] = []
        self._calls = []
        for call in calls:
            leaves, spec = tree_flatten((call.args, call.kwargs))
            places: list[tuple[str, Any]] = []
            for leaf in leaves:
                if isinstance(leaf, harness.Weight):
                    name = f"weight{len(self._parameters)}"
                    self.register_parameter(name, torch.nn.Parameter(leaf.tensor, requires_grad=False))
                    places.append(("weight", name))
                elif isinstance(leaf, torch.Tensor):
                    places.append(("input", len(self.inputs)))
                    self.inputs.append(leaf)
                else:
                    places.append(("value", leaf))
            self._calls.append((call, places, spec))

    def forward(self, *inputs: torch.Tensor) -> list[list[torch.Tensor]]:
        made = []
        for call, places, spec in self._calls:
            given: dict[str, Callable[[Any], Any]] = {
                "weight": lambda name: getattr(self, name), "input": lambda i: inputs[i], "value": lambda v: v
            }  # fmt: skip
            args, kwargs = tree_unflatten([given[kind](key) for kind, key in places], spec)
            result = call.target(*args, **kwargs)
            made.append([result] if isinstance(result, torch.Tensor) else list(result))
        return made


def register() -> None:
    """Make cases of all lowerings; where OneFlow is not installed their tests cannot be imported, and there are none."""
    if engine.refusal():
        return
    engine.load()
    import tests.conftest  # noqa: F401  (hypothesis draws the same examples in every run)
    from diffusers_oneflow import lowering
    from tests.lowering import harness

    for path in sorted((Path(__file__).parents[1] / "tests/lowering").glob("test_*.py")):
        importlib.import_module(f"tests.lowering.{path.stem}")
    for op in lowering.lowered_ops():
        if op not in harness.tests:  # aten.empty and its like: what they hold is undefined
            continue
        add(Case(op, "every call of its tests", functools.partial(run, op), level="ops"))


register()
