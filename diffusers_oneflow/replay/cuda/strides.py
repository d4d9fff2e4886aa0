"""How tensors lie in memory: a kernel that knows can read their rows where they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..values import Ref

# Bytes: results that lie side by side must each begin where the libraries' kernels can read them.
ALIGNED = 256
# Bytes that those kernels read at once, at least.
AT_ONCE = 16


def aligned(*tensors: torch.Tensor | None) -> bool:
    """Whether the libraries' kernels that read so many bytes at once can read them from their beginning."""
    return all(t is None or t.data_ptr() % AT_ONCE == 0 for t in tensors)


def collapsed(sizes: Sequence[int], *strides: Sequence[int]) -> list[tuple[int, ...]]:
    """(size, stride...) of dimensions, outermost first; neighbours are taken together where they can be, and ones left out.

    Args:
        strides: of one tensor, or of several of these sizes.
    """
    dims: list[tuple[int, ...]] = []
    for size, *own in zip(sizes, *strides):
        if size == 1:
            continue
        if dims and list(dims[-1][1:]) == [stride * size for stride in own]:
            dims[-1] = (dims[-1][0] * size, *own)
        else:
            dims.append((size, *own))
    return dims


def descending(like: torch.Tensor) -> tuple[int, ...]:
    """The dimensions in the order in which they lie in memory, outermost first, those of size 1 before all."""
    strides = like.stride()
    return tuple(sorted(range(like.dim()), key=lambda d: (like.shape[d] != 1, -strides[d])))


def ordered(ref: Ref, order: Sequence[int]) -> Ref:
    """What has been computed with its dimensions in another order, as it should be seen."""
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return ref if back == tuple(range(len(order))) else ref.through(lambda t: t.permute(back))


@dataclass(frozen=True)
class Rows:
    """Where the rows of a tensor of any strides lie.

    Attributes:
        order: of its dimensions, in which rows are counted; the last stays the last.
        span, jump, step: so many rows follow each other by `step`, and the next such by `jump`.
    """

    order: tuple[int, ...]
    span: int
    jump: int
    step: int

    @staticmethod
    def dense(dims: int, columns: int) -> "Rows":
        """Of a contiguous tensor."""
        return Rows(tuple(range(dims)), 1, columns, 0)

    @staticmethod
    def of(like: torch.Tensor) -> "Rows | None":
        """In the order of the memory; None where it takes more than two strides to find them."""
        if like.is_contiguous():
            return Rows.dense(like.dim(), like.shape[-1])
        last = like.dim() - 1
        order = tuple(d for d in descending(like) if d != last)
        dims = collapsed([like.shape[d] for d in order], [like.stride(d) for d in order])
        if len(dims) > 2 or (like.stride(-1) != 1 and like.shape[-1] != 1):
            return None
        if len(dims) == 2:
            (_, jump), (span, step) = dims
            return Rows((*order, last), span, jump, step)
        return Rows((*order, last), 1, dims[0][1] if dims else 0, 0)


@dataclass(frozen=True)
class Spread:
    """How the rows of an operand are those of a larger tensor: its row i belongs to row ``i // per % period``.

    Attributes:
        ref: (period, columns), or (1, columns) where all rows are the same; of any stride between rows.
    """

    ref: Ref
    per: int
    period: int

    @staticmethod
    def of(ref: Ref, shape: Sequence[int], order: Sequence[int]) -> "Spread | None":
        """Of an operand that broadcasts to `shape`, but for the last dimension; None where it does not repeat so.

        Args:
            order: of the dimensions, in which the rows are counted.
        """
        columns = shape[-1]
        if not ref.shape or ref.shape[-1] != columns or (ref.like.stride(-1) != 1 and columns != 1):
            return None
        try:
            wide = ref.like.expand(tuple(shape)).permute(tuple(order))
        except RuntimeError:
            return None
        dims = collapsed(wide.shape[:-1], wide.stride()[:-1])
        held = [i for i, (_, stride) in enumerate(dims) if stride]
        if len(held) > 1:
            return None
        per = period = 1
        stride = columns
        if held:
            period, stride = dims[held[0]]
            for size, _ in dims[held[0] + 1 :]:
                per *= size
        return Spread(ref.through(lambda t: t.as_strided((period, columns), (stride, 1))), per, period)

    @staticmethod
    def common(spreads: "Sequence[Spread | None]") -> tuple[int, int] | None:
        """`per` and `period` of all that do not have the same for all rows; None where they differ."""
        found = {(s.per, s.period) for s in spreads if s is not None and s.period > 1}
        return found.pop() if len(found) == 1 else None if found else (1, 1)
