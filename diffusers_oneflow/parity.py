"""OneFlow against PyTorch in numbers: every component of a pipeline, and the image as a whole.

A float32 result is judged by a float64 run of the same module: OneFlow's error may be at most 1.5 times the
error that PyTorch itself makes in float32 (1.2 times in half types), in relative RMS and in the maximum, and never has
to be below 1e-6 of the output's scale. What is judged is OneFlow, or the backend that `judged.judging` names.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from . import judged, signature
from .backend import dispatcher_of, models
from .errors import FallbackWarning, Unsupported

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTOR, HALF_FACTOR = 1.5, 1.2  # for float32, and for bfloat16 and float16
FLOOR = 1e-6
MOST_LEVELS = 1  # of 255, between the final images in float32; `most_levels` has those in half types


@dataclass(frozen=True)
class _Call:
    """A recorded call of a module, and the dtypes of its parameters then."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtypes: dict[str, torch.dtype]


class TorchFails(RuntimeError):
    """Torch itself cannot run a pipeline, or one of its components in float64: there is nothing to compare with."""


@dataclass(frozen=True)
class Error:
    """How far a result is from the float64 one.

    Attributes:
        rms: root mean square of the difference, over that of the reference.
        maximum: largest difference, over the largest absolute value of the reference.
    """

    rms: float
    maximum: float


@dataclass(frozen=True)
class Component:
    """One call of one component: the errors of PyTorch and of what is judged, both in the component's dtype.

    Attributes:
        factor: how many times PyTorch's error the other may be.
        floor: what it never has to be below.
    """

    path: str
    torch: Error
    ours: Error
    factor: float = FACTOR
    floor: float = FLOOR

    @property
    def passed(self) -> bool:
        """Both measures of the error are within `factor` times PyTorch's, or below the floor."""
        return not self.failures

    @property
    def excess(self) -> float:
        """The error as a multiple of what is allowed, the larger of the two measures."""
        return max(ours / most for _, _, ours, most in self._measures())

    @property
    def failures(self) -> list[str]:
        """What is too far off, one sentence a measure."""
        said = "{}: its {} error is {:.1e}; allowed are {:.1e}, since torch's is {:.1e}"
        return [
            said.format(self.path, kind, ours, most, theirs) for kind, theirs, ours, most in self._measures() if not ours <= most
        ]

    def _measures(self) -> Iterator[tuple[str, float, float, float]]:
        for kind, theirs, ours in (
            ("RMS", self.torch.rms, self.ours.rms),
            ("largest", self.torch.maximum, self.ours.maximum),
        ):
            yield kind, theirs, ours, max(self.factor * theirs, self.floor)


@dataclass(frozen=True)
class Report:
    """The components, and the largest difference between the final images in levels of 255 (None: not compared).

    Attributes:
        most_levels: what is allowed of that.
        fallbacks: components that ran in torch, with the reason.
        unexpected: those of them that were to run on the backend.
        drawn: the final images of torch and of the backend, uint8.
    """

    components: list[Component]
    levels: int | None = None
    fallbacks: dict[str, str] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()
    drawn: tuple[NDArray[Any], NDArray[Any]] | None = field(default=None, compare=False, repr=False)
    most_levels: int = MOST_LEVELS

    @property
    def passed(self) -> bool:
        """Every component passed, on the backend where it was to run there, and the images are near enough."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """What is wrong, a sentence each."""
        found = [sentence for c in self.components for sentence in c.failures]
        found += [f"{path} ran in torch, which was not expected: {self.fallbacks[path]}" for path in self.unexpected]
        if self.levels is not None and self.levels > self.most_levels:
            found.append(f"the final image differs by {self.levels} of 255 levels; allowed is {self.most_levels}")
        return found

    def as_dict(self) -> dict[Any, Any]:
        """Plain numbers, for JSON."""
        rows = [{**asdict(c), "passed": c.passed} for c in self.components]
        return {
            "components": rows, "levels": self.levels, "fallbacks": self.fallbacks, "passed": self.passed,
            "failures": self.failures,
        }  # fmt: skip

    def print(self, console: Console | None = None) -> None:
        """Print a table."""
        console = console or Console()
        name = {"oneflow": "OneFlow"}.get(judged.name(), judged.name())
        table = Table(title="Error against float64, relative to the output")
        for column in ("component", "torch RMS", f"{name} RMS", "torch max", f"{name} max", ""):
            table.add_column(column, justify="left" if column in ("component", "") else "right")
        for c in self.components:
            errors = (c.torch.rms, c.ours.rms, c.torch.maximum, c.ours.maximum)
            table.add_row(c.path, *(f"{e:.1e}" for e in errors), "pass" if c.passed else "FAIL")
        console.print(table)
        for path, reason in self.fallbacks.items():
            verdict = " (not expected): FAIL" if path in self.unexpected else ""
            console.print(f"{path} ran in torch: {reason}{verdict}", highlight=False, markup=False)
        if self.levels is not None:
            verdict = "pass" if self.levels <= self.most_levels else "FAIL"
            console.print(f"Final image: largest difference {self.levels} of 255: {verdict}", highlight=False)


def component(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[Any, Any], path: str = "") -> Component:
    """Compare one call of a module where it is, in its dtype; it must not be attached and is left as it was.

    Raises:
        Unsupported: the module, or a part of it, cannot run on OneFlow.
        ValueError: the module gives no floating-point output.
    """
    path = path or type(module).__name__
    expected = _expected(module, args, kwargs, path)
    pipe = judged.Alone(module)
    judged.attach(pipe)
    try:
        row = _judge(module, args, kwargs, path, expected)
        reasons = "; ".join(judged.fallbacks(pipe).values())
    finally:
        judged.detach(pipe)
    if reasons and judged.name() == "oneflow":
        raise Unsupported(path, reasons)
    return row


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
        TorchFails: torch cannot run the pipeline, or a component in float64.
    """
    fallbacks = (fallbacks or {}) if judged.name() == "oneflow" else {}
    reference = pipe
    if change is not None:
        reference = copy.deepcopy(pipe)
        change(reference)
    try:
        calls, expected = _recorded(reference, draw, fallbacks)
        found = models(reference)
        exact = {}
        for path, call in calls.items():
            with _as_called(found[path], call):
                exact[path] = _expected(found[path], call.args, call.kwargs, path)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TorchFails(f"torch itself cannot run it: {type(error).__name__}: {error}") from error
    most = most_levels(reference, draw, expected)
    judged.attach(pipe)
    try:
        if change is not None:
            _quietly(draw, pipe)
            change(pipe)
        found = models(pipe)
        # Attached as a whole, so that the run of the pipeline takes the graphs that were built for the components.
        rows = []
        for path, call in calls.items():
            with _as_called(found[path], call):
                rows.append(_judge(found[path], call.args, call.kwargs, path, exact[path]))
        images = _quietly(draw, pipe)
        ran = judged.fallbacks(pipe)
        for path, part in fallbacks.items():
            _demand(found[path], path, part, ran.get(path, ""))
    finally:
        judged.detach(pipe)
    unexpected = tuple(path for path in ran if path not in fallbacks) if judged.name() == "oneflow" else ()
    if images.shape != expected.shape:
        raise ValueError(f"torch drew images of shape {expected.shape}, the backend of {images.shape}")
    return Report(rows, _levels(images, expected), ran, unexpected, (expected, images), most)


def most_levels(pipe: Any, draw: Callable[[Any], NDArray[Any]], drawn: NDArray[Any]) -> int:
    """How far the final image of the backend may be from `drawn`, torch's own, in levels of 255.

    One level in float32, whose own error does not show. In a half type torch itself is some levels off, as many as a run in
    float32 with the same weights and noise says, and the backend may be `HALF_FACTOR` times as far off as torch, to the other
    side: the two may differ by the sum of both. (Noise has to be the same in both dtypes: that is up to `draw`.)
    """
    floats = {t.dtype for module in models(pipe).values() for t in module.parameters() if t.is_floating_point()}
    if not floats & {torch.float16, torch.bfloat16}:
        return MOST_LEVELS
    wide = copy.deepcopy(pipe).to(torch.float32)
    return max(MOST_LEVELS, math.ceil((1 + HALF_FACTOR) * _levels(_quietly(draw, wide), drawn)))


def _levels(image: NDArray[Any], other: NDArray[Any]) -> int:
    return int(np.abs(image.astype(np.int16) - other.astype(np.int16)).max())


def _recorded(
    pipe: Any, draw: Callable[[Any], NDArray[np.uint8]], fallbacks: Mapping[str, str]
) -> tuple[dict[str, _Call], NDArray[Any]]:
    """The last call of each component that is to be judged, in a run of the pipeline in torch, and its images."""
    calls: dict[str, _Call] = {}
    judgeable = {path: module for path, module in models(pipe).items() if path not in fallbacks}
    hooks = [module.register_forward_pre_hook(_record(calls, path), with_kwargs=True) for path, module in judgeable.items()]
    try:
        expected = draw(pipe)
        if "vae.encoder" in judgeable and "vae.encoder" not in calls and _images(pipe.vae, expected):
            # Drawing from text alone does not call it: it gets the images.
            with torch.no_grad():
                pipe.vae.encode(
                    (torch.from_numpy(expected).permute(0, 3, 1, 2).float() / 127.5 - 1).to(pipe.vae.device, pipe.vae.dtype)
                )
    finally:
        for hook in hooks:
            hook.remove()
    return calls, expected


def _quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call without warnings of fallbacks: the report has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        return function(*args, **kwargs)


def _images(vae: Any, drawn: NDArray[Any]) -> bool:
    """Whether what was drawn are images that the VAE can encode; one of videos cannot."""
    if any(isinstance(module, torch.nn.Conv3d) for module in vae.modules()):
        return False
    return drawn.ndim == 4 and drawn.shape[3] == getattr(vae.config, "in_channels", 3)


def _demand(module: torch.nn.Module, path: str, part: str, reasons: str) -> None:
    """See that an attached module ran in torch, in all its calls; `part` has to be in the reason."""
    dispatcher = dispatcher_of(module)
    if part not in reasons or not reasons or (dispatcher is not None and dispatcher.record.built):
        raise ValueError(f"{path} was expected to run in torch ({part}), but {reasons or 'ran on OneFlow'}")


def errors(result: list[torch.Tensor], reference: list[torch.Tensor]) -> list[Error]:
    """The error of each of a module's outputs; infinite where one alone is NaN.

    Raises:
        ValueError: the outputs differ in number or in shape.
    """
    if [t.shape for t in result] != [t.shape for t in reference]:
        raise ValueError("the outputs of the two runs differ in number or in shape")
    return [error(ours, exact) for ours, exact in zip(result, reference)]


def worst(path: str, ours: list[torch.Tensor], single: list[torch.Tensor], exact: list[torch.Tensor]) -> Component:
    """What is said of a module: of its outputs the one that exceeds most what torch's own error in that output allows.

    Raises:
        ValueError: the outputs differ in number or in shape.
    """
    factor = FACTOR if all(t.dtype == torch.float32 for t in single) else HALF_FACTOR
    rows = [Component(path, theirs, made, factor) for theirs, made in zip(errors(single, exact), errors(ours, exact))]
    return max(rows, key=lambda row: row.excess)


def error(ours: torch.Tensor, exact: torch.Tensor) -> Error:
    """The error of one tensor, which is not empty."""
    ours, exact = ours.double(), exact.double()
    same = (ours == exact) | (ours.isnan() & exact.isnan())  # infinities, too
    off = torch.where(same, 0.0, (ours - exact).abs()).nan_to_num(nan=torch.inf)
    scale = exact[exact.isfinite()].abs()
    rms = _ratio(off.square().mean().sqrt(), scale.square().mean().sqrt())
    return Error(rms, _ratio(off.max(), scale.max() if scale.numel() else scale.sum()))


def _ratio(off: torch.Tensor, scale: torch.Tensor) -> float:
    if off == 0:
        return 0.0
    return (off / scale).item() if scale > 0 else float("inf")


def _record(calls: dict[Any, Any], path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        flat = signature.flatten((args, kwargs))
        args, kwargs = signature.rebuild(flat.spec, [t.detach().clone() for t in flat.tensors])
        calls[path] = _Call(args, kwargs, {name: p.dtype for name, p in module.named_parameters()})

    return hook


@contextlib.contextmanager
def _as_called(module: torch.nn.Module, call: _Call) -> Iterator[None]:
    """Meanwhile the parameters have the dtypes that they had in the call: some pipelines cast a VAE up only to decode."""
    changed = [
        (p, p.data, call.dtypes[name]) for name, p in module.named_parameters() if p.dtype != call.dtypes.get(name, p.dtype)
    ]
    for parameter, data, dtype in changed:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data, _ in changed:
            parameter.data = data


@torch.no_grad()
def _expected(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """PyTorch's results in the module's dtype and in float64."""
    flat = signature.flatten((args, kwargs))
    # Lists are made anew for every call: some models take their elements out.
    args, kwargs = signature.rebuild(flat.spec, flat.tensors)
    single = _floats(module(*args, **kwargs))
    if not single:
        raise ValueError(f"{path} gives no floating-point output to compare")
    wide = [t.double() if t.is_floating_point() else t for t in flat.tensors]
    args, kwargs = signature.rebuild(flat.spec, wide)
    return single, _floats(copy.deepcopy(module).double()(*args, **kwargs))


@torch.no_grad()
def _judge(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: str,
    expected: tuple[list[torch.Tensor], list[torch.Tensor]],
) -> Component:
    """Run an attached module and compare."""
    return worst(path, _floats(_quietly(module, *args, **kwargs)), *expected)


def _floats(output: Any) -> list[torch.Tensor]:
    """One for each place: whether two are one object does not matter."""
    flat = signature.flatten(output)
    return [flat.tensors[i] for i in signature.places(flat.spec) if flat.tensors[i].is_floating_point()]
