"""Look-ups by index.

OneFlow's gather ends the process at a negative index and gives zeros for one that is too large, where
torch raises IndexError: indices are made valid first, and rows that torch would refuse become NaN.
"""

import math

import oneflow as flow
import torch

from .arithmetic import add
from .factory import filled
from .kernels import checked as _C
from .logic import chosen
from .registry import Refused, lowering
from .shape import permute, reshaped
from .types import cast, torch_dtype


def _rows(table, index):
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


def _wrapped(index, size):
    """Negative entries count from the end."""
    return chosen(_C.less(index, 0), _C.add(index, size), index)


@lowering("aten.embedding.default")
def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    return reshaped(_rows(weight, reshaped(indices, [-1])), [*indices.shape, weight.shape[1]])


@lowering("aten.index_select.default")
def index_select(self, dim, index):
    if not self.ndim:
        raise Refused("a tensor without dimensions")
    dim = dim % self.ndim
    order = [dim, *(d for d in range(self.ndim) if d != dim)]
    rows = _rows(permute(self, order), reshaped(index, [-1]))
    return permute(rows, [order.index(d) for d in range(self.ndim)])


@lowering("aten.gather.default")
def gather(self, dim, index, *, sparse_grad=False):
    if not self.ndim or not index.ndim:
        raise Refused("a tensor without dimensions")
    safe = _C.clamp_max(_C.clamp_min(cast(index, torch.int64), 0), self.shape[dim % self.ndim] - 1)
    return _C.dim_gather(self, dim % self.ndim, safe, False)


@lowering("aten.index.Tensor")
def index(self, indices):
    """``self[i, j, ...]`` with integer index tensors on the leading dimensions; they broadcast."""
    given = [i for i in indices if i is not None]
    if any(i is None for i in indices[: len(given)]):
        raise Refused("an index that leaves out a leading dimension")
    if any(i.dtype not in (flow.int64, flow.int32) for i in given):
        raise Refused("a mask as index gives a shape that depends on data")
    # One flat index into the leading dimensions, in which each index that is out of range stays so.
    count = len(given)
    flat, stride, bad = None, 1, None
    for i, size in reversed(list(zip(given, self.shape))):
        i = _wrapped(cast(i, torch.int64), size)
        outside = _C.logical_or(_C.less(i, 0), _C.greater_equal(i, size))
        bad = outside if bad is None else _C.logical_or(bad, outside)
        part = _C.mul(i, stride)
        flat = part if flat is None else _C.add(flat, part)
        stride *= size
    flat = chosen(bad, filled([], -1, torch.int64), flat)
    rows = _rows(reshaped(self, [stride, *self.shape[count:]]), reshaped(flat, [-1]))
    return reshaped(rows, [*flat.shape, *self.shape[count:]])
