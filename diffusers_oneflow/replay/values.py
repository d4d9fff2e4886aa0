"""What a step reads: a tensor that something has made, seen through views that cost nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(eq=False)
class Step:
    """One thing to compute.

    Attributes:
        run: called as ``run(out, *args)``, with torch tensors in the place of `Ref`; fills `out`.
        own: `run` returns the result instead, a new dense tensor: a library has no other way.
        args: nested lists, tuples and dictionaries with `Ref` in them.
        like: a dense meta tensor of the result's shape and dtype.
        op, kernel, where: what it comes from, for reports.
        number: its place in order.
    """

    run: Callable[..., torch.Tensor | None]
    args: tuple[Any, ...]
    like: torch.Tensor
    op: str
    kernel: str
    where: str
    number: int = -1
    own: bool = False

    @property
    def sources(self) -> list["Step | int"]:
        """What it reads that is no weight: steps, and numbers of inputs."""
        return [ref.source for ref in refs(self.args) if not isinstance(ref.source, torch.Tensor)]

    @property
    def planned(self) -> torch.Size:
        """The shape of what it needs in the plan: with memory of its own, as little as there is."""
        return torch.Size((1,)) if self.own else self.like.shape


@dataclass(frozen=True, eq=False)
class Ref:
    """A tensor that a step will read.

    Attributes:
        source: the step that makes it, the number of the graph's input that it is, or a weight.
        like: a meta tensor of its shape, strides and dtype.
        views: functions from tensor to tensor, applied in order; none copies.
    """

    source: Step | int | torch.Tensor
    like: torch.Tensor
    views: tuple[View, ...] = field(default=())

    @property
    def shape(self) -> torch.Size:
        """The shape as it is seen."""
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype."""
        return self.like.dtype

    def through(self, view: View) -> "Ref":
        """The same memory seen through one more view.

        Raises:
            RuntimeError: torch cannot view it so.
        """
        return Ref(self.source, view(self.like), (*self.views, view))

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The view of the source's `tensor`."""
        for view in self.views:
            tensor = view(tensor)
        return tensor


def meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without memory of the same shape, strides and dtype."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def dense(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor without memory."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def map_refs(args: Any, function: Callable[[Ref], Any]) -> Any:
    """`args` with `function` of each `Ref` in its place."""
    if isinstance(args, Ref):
        return function(args)
    if isinstance(args, (list, tuple)) and not isinstance(args, torch.Size):
        return type(args)(map_refs(a, function) for a in args)
    if isinstance(args, dict):
        return {k: map_refs(v, function) for k, v in args.items()}
    return args


def refs(args: Any) -> list[Ref]:
    """All `Ref` in `args`, in order."""
    found: list[Ref] = []
    map_refs(args, lambda ref: found.append(ref))
    return found
