"""Lowerings on CUDA of what only moves: concatenations, and copies that make a view dense."""

from collections.abc import Sequence
from typing import Any

import torch

from ..lowering import Lowered
from ..values import Ref, dense
from . import choice, kernels
from .light import power
from .strides import collapsed, descending, ordered
from .table import on_cuda

# Numbers that one program moves, and those of one row at most; dimensions around the rows that it knows.
_TILE, _WIDEST, _OUTER = 4096, 2048, 3
# Of CUDA, in the second dimension of a grid.
_MOST_BLOCKS = 65535


def rows_of(out: torch.Tensor, x: torch.Tensor) -> tuple[list[int], list[int], list[int]] | None:
    """Two views of one shape as rows: ``(sizes, strides of out, strides of x)``, with as few dimensions as it takes.

    The last one is that of a row, whose numbers lie side by side in both. None where they do not, where a row has more of them
    than a grid takes, or where more than four dimensions are needed.
    """
    dims = collapsed(out.shape, out.stride(), x.stride())
    if not dims or dims[-1][1:] != (1, 1) or len(dims) > _OUTER + 1 or dims[-1][0] > _MOST_BLOCKS * _WIDEST:
        return None
    sizes, ours, theirs = zip(*[(1, 0, 0)] * (_OUTER + 1 - len(dims)), *dims)
    return list(sizes), list(ours), list(theirs)


def tiles(rows: int, columns: int) -> tuple[tuple[int, int], int, int]:
    """The grid of programs that move so many rows; rows and columns of each."""
    wide = min(_WIDEST, power(columns))
    high = min(_TILE // wide, power(rows))
    return (-(-rows // high), -(-columns // wide)), high, wide


def move(out: torch.Tensor, x: torch.Tensor) -> None:
    """``out.copy_(x)`` of two views of one shape and dtype, at the rate of the memory."""
    found = rows_of(out, x)
    if found is None:
        out.copy_(x)
        return
    (outer, middle, inner, columns), ours, theirs = found
    rows = outer * middle * inner
    grid, *tile = tiles(rows, columns)
    kernels.move_kernel[grid](out, x, rows, columns, middle, inner, *ours[:3], *theirs[:3], *tile, num_warps=8)


class Cat(choice.Ways):
    """``torch.cat`` of one step, whose own kernel reads parts that are not dense two bytes at a time.

    Attributes:
        dim: in which.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def __call__(self, out: torch.Tensor, *parts: torch.Tensor) -> None:
        """Fill `out`."""
        shapes = tuple((tuple(t.shape), t.stride()) for t in parts)
        self._compute(("cat", self.dim, shapes, str(out.dtype)), (out, *parts), out.device, spare=0)

    def kernels(self, out: torch.Tensor, *parts: torch.Tensor) -> None:
        """Launch those of Triton's."""
        self._moved(out, *parts)

    def _ways(self, *tensors: torch.Tensor) -> list[choice.Way]:
        return [(self._moved, "triton cat"), (self._in_torch, "cat")]

    def _moved(self, out: torch.Tensor, *parts: torch.Tensor) -> None:
        start = 0
        for part in parts:
            size = part.shape[self.dim]
            move(out.narrow(self.dim, start, size), part)
            start += size

    def _in_torch(self, out: torch.Tensor, *parts: torch.Tensor) -> None:
        torch.cat(parts, self.dim, out=out)


@on_cuda("oneflow.copy")
def copy(lowered: Lowered, node: torch.fx.Node, x: Ref) -> Ref:
    """A dense copy: what `Lowered.contiguous` asks for."""
    rows = rows_of(dense(x.shape, x.dtype), x.like)
    return lowered.step(node, move, (x,), x.shape, x.dtype, "copy" if rows is None else "triton copy")


@on_cuda("aten.cat.default")
def cat(lowered: Lowered, node: torch.fx.Node, tensors: Sequence[Ref], dim: int = 0) -> Any:
    made = node.meta["val"]
    if len({t.dtype for t in tensors}) > 1 or any(t.shape.numel() == 0 for t in tensors):
        return lowered.in_torch(node, (tensors, dim), {})
    # In the order in which all parts lie: heads that stand between the positions of a text, say, stay there.
    order, *others = {descending(t.like) for t in tensors}
    if others or any(t.like.stride(order[-1]) != 1 for t in tensors):
        order = tuple(range(made.ndim))
    parts = [t.through(lambda v: v.permute(order)) for t in tensors]
    shape = [made.shape[d] for d in order]
    return ordered(lowered.step(node, Cat(order.index(dim % made.ndim)), tuple(parts), shape, made.dtype, "cat"), order)
