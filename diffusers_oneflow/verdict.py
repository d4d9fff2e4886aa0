"""What a comparison with PyTorch found: errors, what is allowed of them, and a report of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from . import judged

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTOR, HALF_FACTOR = 1.5, 1.2  # for float32, and for bfloat16 and float16
FLOOR = 1e-6
MOST_LEVELS = 1  # of 255, between the final images in float32; `most_levels` has those in half types
# The largest error of all calls may be `factor` times this times PyTorch's, since it is mostly chance: of 32 calls of 32 numbers
# that are equally far off it is above 1.2 times that of 32 others in one draw of 11, and below in a third of those that are 1.25
# times as far off. What the calls' largest are on average is above in none, and below in a fifth.
_ONE_CALL = 1.5
_MEAN, _PEAK = "largest (the average of several calls)", "largest (of several calls)"


@dataclass(frozen=True)
class Error:
    """How far a result is from the float64 one.

    Attributes:
        rms: root mean square of the difference, over that of the reference.
        maximum: largest difference, over the largest absolute value of the reference; of several calls the average.
        peak: the `maximum` of that one of several calls where it is largest; None of one call.
    """

    rms: float
    maximum: float
    peak: float | None = None


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
        """Each measure of the error is within `factor` times PyTorch's, the peak 1.5 times that, or below the floor."""
        return not self.failures

    @property
    def excess(self) -> float:
        """The error as a multiple of what is allowed, in the measure where that is most; above 1 where it fails."""
        return max(_share(ours, most) for _, _, ours, most in self._measures())

    @property
    def failures(self) -> list[str]:
        """What is too far off, one sentence a measure."""
        said = "{}: its {} error is {:.1e}; allowed are {:.1e}, since torch's is {:.1e}"
        return [
            said.format(self.path, kind, ours, most, theirs) for kind, theirs, ours, most in self._measures() if not ours <= most
        ]

    def _measures(self) -> Iterator[tuple[str, float, float, float]]:
        if self.torch.peak is None or self.ours.peak is None:
            largest = [("largest", self.factor, self.torch.maximum, self.ours.maximum)]
        else:
            largest = [
                (_MEAN, self.factor, self.torch.maximum, self.ours.maximum),
                (_PEAK, _ONE_CALL * self.factor, self.torch.peak, self.ours.peak),
            ]
        for kind, factor, theirs, ours in [("RMS", self.factor, self.torch.rms, self.ours.rms), *largest]:
            yield kind, theirs, ours, max(factor * theirs, self.floor)


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


def _share(ours: float, most: float) -> float:
    """How much of what is allowed an error takes, where all or nothing may be allowed too."""
    if most in (0.0, math.inf):
        return 0.0 if ours <= most else math.inf
    return ours / most


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
    return pooled([rows_of(path, ours, single, exact)])


def rows_of(path: str, ours: list[torch.Tensor], single: list[torch.Tensor], exact: list[torch.Tensor]) -> list[Component]:
    """One for each output of one call.

    Raises:
        ValueError: the outputs differ in number or in shape.
    """
    factor = FACTOR if all(t.dtype == torch.float32 for t in single) else HALF_FACTOR
    return [Component(path, theirs, made, factor) for theirs, made in zip(errors(single, exact), errors(ours, exact))]


def pooled(calls: Sequence[list[Component]]) -> Component:
    """What is said of a module over several calls, each with one row for each output, as `worst` of one.

    Calls in which torch itself overflows say nothing of an output, if there are others.
    """
    found = [_over([row for row in rows if math.isfinite(row.torch.rms)] or list(rows)) for rows in zip(*calls)]
    return max(found, key=lambda row: row.excess)


def _over(rows: list[Component]) -> Component:
    """The errors of several calls, each in proportion to what that call gives."""
    if len(rows) == 1:
        return rows[0]
    return replace(rows[0], torch=_mean([r.torch for r in rows]), ours=_mean([r.ours for r in rows]))


def _mean(found: list[Error]) -> Error:
    largest = [e.maximum for e in found]
    return Error(math.hypot(*(e.rms for e in found)) / math.sqrt(len(found)), sum(largest) / len(found), max(largest))


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
