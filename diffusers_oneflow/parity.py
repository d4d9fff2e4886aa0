"""OneFlow against PyTorch in numbers: every component of a pipeline, and the image as a whole.

A float32 result is judged by a float64 run of the same module: OneFlow's error may be at most 1.5 times the
error that PyTorch itself makes in float32 (1.2 times in half types), in relative RMS and in the maximum, and never has
to be below 1e-6 of the output's scale. In half types, and where one call fails by a little, these are over several
calls (`nearby`): the maximum is the average of each call's, and the largest of all may be 1.5 times as far from
PyTorch's largest as the others from theirs. What is judged is OneFlow, or the backend that `judged.judging` names.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import autocast, judged, nearby, recorded, signature
from .backend import dispatcher_of, models
from .errors import FallbackWarning, Unsupported
from .verdict import FACTOR, FLOOR, HALF_FACTOR, MOST_LEVELS, Component, Error, Report, error, errors, pooled, rows_of, worst

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FACTOR", "FLOOR", "HALF_FACTOR", "LITTLE", "MOST_LEVELS", "Component", "Error", "Report", "TorchFails", "component", "error",
    "errors", "most_levels", "pipeline", "pooled", "worst",
]  # fmt: skip
# So often a pipeline is drawn with its models' results rounded otherwise, where its images differ by more than expected.
_DRAWS = 8
# Times what is allowed; up to it one number may be what decides.
LITTLE = 1.5


@dataclass(frozen=True)
class _Expected:
    """A call, and what PyTorch makes of it in the module's dtype and in float64."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    single: list[torch.Tensor]
    exact: list[torch.Tensor]


class TorchFails(RuntimeError):
    """Torch itself cannot run a pipeline, or one of its components in float64: there is nothing to compare with."""


def component(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[Any, Any], path: str = "") -> Component:
    """Compare one call of a module where it is, in its dtype; it must not be attached and is left as it was.

    Raises:
        Unsupported: the module, or a part of it, cannot run on OneFlow.
        ValueError: the module gives no floating-point output.
    """
    path = path or type(module).__name__
    row, reasons = _alone(module, path, _expected(module, args, kwargs, path))
    if reasons and judged.name() == "oneflow":
        raise Unsupported(path, reasons)
    return row if row.passed else _again(module, args, kwargs, row)


def pipeline(
    pipe: Any,
    draw: Callable[[object], NDArray[Any]],
    fallbacks: Mapping[str, str] | None = None,
    change: Callable[[object], object] | None = None,
) -> Report:
    """Compare each component of a pipeline on the inputs of its last call in a run, and the run's images.

    Args:
        pipe: a pipeline on torch, on any device that has float64, in float32 or a half type.
        draw: runs the pipeline, seeded: pipe -> images, uint8, (n, h, w, 3).
        fallbacks: components that have to run in torch -> a part of the reason; all others must not. For OneFlow only:
            of another backend nothing is expected.
        change: alters the attached pipeline once it has drawn; what is compared is the altered one.

    Raises:
        ValueError: one of `fallbacks` ran on OneFlow, or in torch for another reason; or the images differ in shape.
        TorchFails: torch cannot run the pipeline, not a second time, or not a component in float64.
    """
    fallbacks = (fallbacks or {}) if judged.name() == "oneflow" else {}
    reference = pipe
    if change is not None:
        reference = _copied(pipe, models(pipe).values())
        change(reference)
    before = _dtypes(reference)
    try:
        calls, expected = recorded.record(reference, draw, fallbacks)
        found = models(reference)
        exact = {}
        for path, call in calls.items():
            with recorded.in_dtypes(found[path], call.dtypes):
                exact[path] = _expected(found[path], call.args, call.kwargs, path)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TorchFails(f"torch itself cannot run it: {type(error).__name__}: {error}") from error
    # Before the backend has touched it, or what it breaks would be torch's failure.
    if _dtypes(reference) != before:
        _require_another(draw, reference)
    judged.attach(pipe)
    try:
        if change is not None:
            _quietly(draw, pipe)
            change(pipe)
        found = models(pipe)
        # Attached as a whole, so that the run of the pipeline takes the graphs that were built for the components.
        rows = []
        for path, call in calls.items():
            with recorded.in_dtypes(found[path], call.dtypes):
                rows.append(_judge(found[path], path, exact[path]))
        images = _quietly(draw, pipe)
        ran = judged.fallbacks(pipe)
        for path, part in fallbacks.items():
            _demand(found[path], path, part, ran.get(path, ""))
    finally:
        judged.detach(pipe)
    unexpected = tuple(path for path in ran if path not in fallbacks) if judged.name() == "oneflow" else ()
    if images.shape != expected.shape:
        raise ValueError(f"torch drew images of shape {expected.shape}, the backend of {images.shape}")
    for number, row in enumerate(rows):
        call = calls[row.path]
        with recorded.in_dtypes(found[row.path], call.dtypes):
            rows[number] = row if row.passed else _again(found[row.path], call.args, call.kwargs, row)
    levels = _levels(images, expected)
    return Report(rows, levels, ran, unexpected, (expected, images), most_levels(reference, draw, expected, levels))


def most_levels(pipe: Any, draw: Callable[[Any], NDArray[Any]], drawn: NDArray[Any], levels: int = 0) -> int:
    """How far the final image of the backend may be from `drawn`, torch's own, in levels of 255.

    One level in float32, whose own error does not show. In a half type, or under autocast, torch itself is some levels off, as
    many as a run in float32 with the same weights and noise says, and the backend may be `HALF_FACTOR` times as far off as
    torch, to the other side: the two may differ by the sum of both. Where a pipeline makes much of a little, one run says too
    little: then torch is as far off as when its models' results are rounded otherwise (`nearby.rounded`), in the worst of
    several runs. (Noise has to be the same in all of them: that is up to `draw`.)

    Args:
        levels: how far the image is; more runs are made only where it is farther than the first allows.
    """
    floats = {t.dtype for module in models(pipe).values() for t in module.parameters() if t.is_floating_point()}
    casting = autocast.current(torch.device(pipe.device))
    if casting is None and not floats & {torch.float16, torch.bfloat16}:
        return MOST_LEVELS
    wide = _copied(pipe, models(pipe).values()).to(torch.float32)
    with autocast.off(casting):
        off, runs = _levels(_quietly(draw, wide), drawn), 0
    del wide
    while levels > (most := max(MOST_LEVELS, math.ceil((1 + HALF_FACTOR) * off))) and runs < _DRAWS:
        with nearby.rounded(pipe, seed=runs):
            off = max(off, _levels(_quietly(draw, pipe), drawn))
        runs += 1
    return most


def _levels(image: NDArray[Any], other: NDArray[Any]) -> int:
    return int(np.abs(image.astype(np.int16) - other.astype(np.int16)).max())


def _quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call without warnings of fallbacks: the report has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        return function(*args, **kwargs)


def _demand(module: torch.nn.Module, path: str, part: str, reasons: str) -> None:
    """See that an attached module ran in torch, in all its calls; `part` has to be in the reason."""
    dispatcher = dispatcher_of(module)
    if part not in reasons or not reasons or (dispatcher is not None and dispatcher.record.built):
        raise ValueError(f"{path} was expected to run in torch ({part}), but {reasons or 'ran on OneFlow'}")


def _require_another(draw: Callable[[Any], object], pipe: Any) -> None:
    """Raise `TorchFails` where torch cannot run a pipeline again: one that casts its VAE up may forget to cast it down."""
    try:
        _quietly(draw, pipe)
    except Exception as error:
        raise TorchFails(f"torch itself cannot run it twice: {type(error).__name__}: {error}") from error


def _dtypes(pipe: Any) -> list[recorded.Dtypes]:
    return [recorded.dtypes_of(part) for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _copied(value: Any, modules: Iterable[torch.nn.Module]) -> Any:
    """A deep copy. Weights that a module has computed from others (weight_norm), which torch cannot copy, are shared."""
    attributes = [a for module in modules for sub in module.modules() for a in vars(sub).values()]
    computed = {id(t): t.detach() for t in attributes if isinstance(t, torch.Tensor) and not t.is_leaf}
    return copy.deepcopy(value, computed)


def _alone(module: torch.nn.Module, path: str, expected: list[_Expected]) -> tuple[Component, str]:
    """Compare a module that is not attached; why it ran in torch, if it did."""
    pipe = judged.Alone(module)
    judged.attach(pipe)
    try:
        return _judge(module, path, expected), "; ".join(judged.fallbacks(pipe).values())
    finally:
        judged.detach(pipe)


def _again(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], row: Component) -> Component:
    """What other calls say, where there are any, of a module that failed by a little: some have their error in one number.

    What fails by more is no chance, nor is what an attached pipeline does and the module alone does not.
    """
    if not row.excess <= LITTLE:
        return row
    others = _expected(module, args, kwargs, row.path, nearby.MORE_CALLS)
    if not others:
        return row
    found, reasons = _alone(module, row.path, others)
    return row if reasons else found


@torch.no_grad()
def _expected(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str, numbers: range = nearby.CALLS
) -> list[_Expected]:
    """PyTorch's results: in float32 of the one call, unless `numbers` asks for others, in half types of all."""
    flat = signature.flatten((args, kwargs))
    wide, made = _copied(module, [module]).double(), []
    tables = [m.num_embeddings for m in module.modules() if isinstance(m, torch.nn.Embedding)]
    for tensors in nearby.calls(flat.tensors, numbers, tables):
        # Lists are made anew for every call: some models take their elements out.
        args, kwargs = signature.rebuild(flat.spec, tensors)
        single = _floats(module(*args, **kwargs))
        if not single:
            raise ValueError(f"{path} gives no floating-point output to compare")
        args, kwargs = signature.rebuild(flat.spec, [t.double() if t.is_floating_point() else t for t in tensors])
        exact = _floats(wide(*args, **kwargs))
        args, kwargs = signature.rebuild(flat.spec, tensors)
        made.append(_Expected(args, kwargs, single, exact))
        if numbers is nearby.CALLS and all(t.dtype in (torch.float32, torch.float64) for t in single):
            break
    return made


@torch.no_grad()
def _judge(module: torch.nn.Module, path: str, expected: list[_Expected]) -> Component:
    """Run an attached module and compare."""
    made = [_floats(_quietly(module, *call.args, **call.kwargs)) for call in expected]
    return pooled([rows_of(path, ours, call.single, call.exact) for ours, call in zip(made, expected)])


def _floats(output: Any) -> list[torch.Tensor]:
    """One for each place: whether two are one object does not matter."""
    flat = signature.flatten(output)
    return [flat.tensors[i] for i in signature.places(flat.spec) if flat.tensors[i].is_floating_point()]
