"""Look-ups by index.

OneFlow's gather ends the process at a negative index and gives zeros for one that is too large, where
torch raises IndexError: indices are made valid first, and rows that torch would refuse become NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import oneflow as flow
import torch

from .arithmetic import add
from .factory import filled
from .kernels import checked as _C
from .logic import chosen, where
from .registry import Refused, lowering
from .shape import cat, expand, permute, reshaped, slice_, unsqueeze
from .types import cast, torch_dtype


def _rows(table: flow.Tensor, index: flow.Tensor) -> flow.Tensor:
    """``table[index]`` for a one-dimensional index that may not be negative."""
    dtype = torch_dtype(table)
    size = table.shape[0]
    valid = _C.logical_and(_C.greater_equal(index, 0), _C.less(index, size))
    safe = _C.clamp_max(_C.clamp_min(index, 0), size - 1)
    rows = _C.gather(cast(table, torch.int32) if dtype == torch.uint8 else table, safe, 0)
    if dtype.is_floating_point:
        spoilt = chosen(valid, filled([], 0, dtype), filled([], math.nan, dtype))
        rows = add(rows, reshaped(spoilt, [-1] + [1] * (table.ndim - 1)))
    return cast(rows, dtype)


def _wrapped(index: flow.Tensor, size: int) -> flow.Tensor:
    """Negative entries count from the end."""
    return chosen(_C.less(index, 0), _C.add(index, size), index)


@lowering("aten.embedding.default")
def embedding(
    weight: flow.Tensor,
    indices: flow.Tensor,
    padding_idx: object = -1,
    scale_grad_by_freq: object = False,
    sparse: object = False,
) -> flow.Tensor:
    return reshaped(_rows(weight, reshaped(indices, [-1])), [*indices.shape, weight.shape[1]])


@lowering("aten.index_select.default")
def index_select(self: flow.Tensor, dim: int, index: flow.Tensor) -> flow.Tensor:
    if not self.ndim:
        raise Refused("a tensor without dimensions")
    dim = dim % self.ndim
    order = [dim, *(d for d in range(self.ndim) if d != dim)]
    rows = _rows(permute(self, order), reshaped(index, [-1]))
    return permute(rows, [order.index(d) for d in range(self.ndim)])


@lowering("aten.gather.default")
def gather(self: flow.Tensor, dim: int, index: flow.Tensor, *, sparse_grad: object = False) -> flow.Tensor:
    if not self.ndim or not index.ndim:
        raise Refused("a tensor without dimensions")
    safe = _C.clamp_max(_C.clamp_min(cast(index, torch.int64), 0), self.shape[dim % self.ndim] - 1)
    return _C.dim_gather(self, dim % self.ndim, safe, False)


@lowering("aten.index.Tensor")
def index(self: flow.Tensor, indices: Sequence[flow.Tensor | None]) -> flow.Tensor:
    """``self[i, :, j, ...]`` with integer index tensors, which broadcast."""
    dims, _, table, flat = _table(self, indices)
    rows = reshaped(_rows(table, reshaped(flat, [-1])), [*flat.shape, *table.shape[1:]])
    # The new dimensions stand where the indexed ones did, if those were neighbours, else in front.
    before = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0
    made, kept = list(range(flat.ndim)), list(range(flat.ndim, rows.ndim))
    return permute(rows, kept[:before] + made + kept[before:])


def _table(self: flow.Tensor, indices: Sequence[flow.Tensor | None]) -> tuple[list[int], list[int], flow.Tensor, flow.Tensor]:
    """The indexed dimensions, the others, `self` as rows that a flat index picks from, and that index."""
    dims = [d for d, i in enumerate(indices) if i is not None]
    given: list[flow.Tensor] = [indices[d] for d in dims]
    if any(i.dtype not in (flow.int64, flow.int32) for i in given):
        raise Refused("a mask as index gives a shape that depends on data")
    rest = [d for d in range(self.ndim) if d not in dims]
    sizes = [self.shape[d] for d in dims]
    table = reshaped(permute(self, dims + rest), [math.prod(sizes), *(self.shape[d] for d in rest)])
    return dims, rest, table, _flat_index(given, sizes)


@lowering("aten.index_put.default")
def index_put(
    self: flow.Tensor, indices: Sequence[flow.Tensor | None], values: flow.Tensor, accumulate: bool = False
) -> flow.Tensor:
    """``self[i, :, j, ...] = values``, or ``self[mask] = value`` for one value."""
    if accumulate:
        raise Refused("values that are added up")
    dtype = torch_dtype(self)
    if len(indices) == 1 and indices[0] is not None and torch_dtype(indices[0]) == torch.bool:
        if math.prod(values.shape) != 1:
            raise Refused("a mask as index takes as many values as it is true")
        mask = reshaped(indices[0], [*indices[0].shape, *[1] * (self.ndim - indices[0].ndim)])
        return where(mask, reshaped(values, []), self)
    dims, rest, table, flat = _table(self, indices)
    within = dtype if dtype.is_floating_point or dtype == torch.int64 else torch.int32
    before = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0
    kept = [self.shape[d] for d in rest]
    full = [*kept[:before], *flat.shape, *kept[before:]]
    values = expand(values, full)
    made = list(range(before, before + flat.ndim))
    values = permute(values, made + [d for d in range(len(full)) if d not in made])
    count = math.prod(flat.shape)
    safe = reshaped(_C.clamp_min(flat, 0), [count, 1])
    updates = reshaped(cast(values, within), [count, *table.shape[1:]])
    out = cast(_C.tensor_scatter_nd_update(cast(table, within), safe, updates), dtype)
    if dtype.is_floating_point:
        bad = _C.reduce_max(cast(_C.less(flat, 0), torch.int32), list(range(flat.ndim)), False) if flat.ndim else _C.less(flat, 0)
        out = add(out, chosen(cast(bad, torch.bool), filled([], math.nan, dtype), filled([], 0, dtype)))
    order = dims + rest
    out = reshaped(out, [self.shape[d] for d in order])
    return permute(out, [order.index(d) for d in range(self.ndim)])


def _flat_index(indices: Sequence[flow.Tensor], sizes: Sequence[int]) -> flow.Tensor:
    """One index into dimensions of `sizes` taken together; -1 where an index is out of range."""
    flat, stride, bad = None, 1, None
    for i, size in reversed(list(zip(indices, sizes))):
        i = _wrapped(cast(i, torch.int64), size)
        outside = _C.logical_or(_C.less(i, 0), _C.greater_equal(i, size))
        bad = outside if bad is None else _C.logical_or(bad, outside)
        part = _C.mul(i, stride)
        flat = part if flat is None else _C.add(flat, part)
        stride *= size
    return chosen(bad, filled([], -1, torch.int64), flat)


@lowering("aten.slice_scatter.default")
def slice_scatter(
    self: flow.Tensor, src: flow.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> flow.Tensor:
    dim = dim % self.ndim
    size = self.shape[dim]
    start, end, _ = slice(start, end).indices(size)
    if end <= start:
        return self
    if step != 1:
        # Every second element, say, of a whole dimension: one element in a dimension of two.
        if size % step or start >= step or end <= size - step + start:
            raise Refused(f"a step of {step} through a part of a dimension")
        split = [*self.shape[:dim], size // step, step, *self.shape[dim + 1 :]]
        return reshaped(slice_scatter(reshaped(self, split), unsqueeze(src, dim + 1), dim + 1, start, start + 1), self.shape)
    parts = [slice_(self, dim, 0, start)] if start else []
    parts.append(cast(src, torch_dtype(self)))
    return cat(parts + ([slice_(self, dim, end, size)] if end < size else []), dim)


@lowering("aten.select_scatter.default")
def select_scatter(self: flow.Tensor, src: flow.Tensor, dim: int, index: int) -> flow.Tensor:
    dim = dim % self.ndim
    index = index % self.shape[dim]
    return slice_scatter(self, unsqueeze(src, dim), dim, index, index + 1)
