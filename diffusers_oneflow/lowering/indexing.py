"""Look-ups by index."""

import oneflow as flow

from .kernels import checked as _C
from .registry import Refused, lowering
from .shape import reshaped


@lowering("aten.embedding.default")
def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    rows = _C.gather(weight, reshaped(indices, [-1]), 0)
    return reshaped(rows, [*indices.shape, weight.shape[1]])


@lowering("aten.index_select.default")
def index_select(self, dim, index):
    return _C.gather(self, index, dim % self.ndim)


@lowering("aten.index.Tensor")
def index(self, indices):
    """``self[i, j, ...]`` with integer index tensors on the leading dimensions."""
    given = [i for i in indices if i is not None]
    if len(given) != len(indices):
        raise Refused("an index that leaves out a leading dimension")
    if any(i.dtype not in (flow.int64, flow.int32) for i in given):
        raise Refused("a mask as index gives a shape that depends on data")
    if len(given) == 1:
        rows = _C.gather(self, reshaped(given[0], [-1]), 0)
        return reshaped(rows, [*given[0].shape, *self.shape[1:]])
    # Several indices: one flat index into the leading dimensions. Negative entries wrap as in torch.
    flat, stride = None, 1
    for i, size in reversed(list(zip(given, self.shape))):
        i = _C.where(_C.less(i, 0), _C.add(i, size), i)
        part = _C.mul(i, stride)
        flat = part if flat is None else _C.add(flat, part)
        stride *= size
    table = reshaped(self, [stride, *self.shape[len(given) :]])
    rows = _C.gather(table, reshaped(flat, [-1]), 0)
    return reshaped(rows, [*flat.shape, *self.shape[len(given) :]])
