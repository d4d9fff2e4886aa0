"""The pack's lowerings of ops that move data: views cost nothing, all others are one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import oneflow as flow

from ..lowering.registry import Refused
from ..lowering.types import torch_dtype
from .lowering import native
from .node import dense_strides, node


def view(x: flow.Tensor, shape: Sequence[int]) -> flow.Tensor:
    """`x` with a new shape, on the same memory."""
    shape = [int(s) for s in shape]
    if -1 in shape:
        known = math.prod(s for s in shape if s != -1)
        shape[shape.index(-1)] = math.prod(x.shape) // known
    if list(x.shape) == shape:
        return x
    dtype = torch_dtype(x)
    return node("dfo_view", [x], shape, dtype, math.prod(shape) * dtype.itemsize)


def strided(x: flow.Tensor, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> flow.Tensor:
    """A dense copy of `x` read by strides (in elements)."""
    dtype = torch_dtype(x)
    if len(shape) > 8:
        raise Refused("more than 8 dimensions")
    return node("dfo_copy", [x], shape, dtype, dtype.itemsize, offset, list(shape), list(strides))


def _some(x: flow.Tensor) -> flow.Tensor:
    """Refuse what OneFlow's own lowering refuses: an empty tensor."""
    if math.prod(x.shape) == 0:
        raise Refused("an empty tensor")
    return x


@native("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def reshape(self: flow.Tensor, size: Sequence[int]) -> flow.Tensor:
    return view(_some(self), size)


@native("aten.flatten.using_ints")
def flatten(self: flow.Tensor, start_dim: int = 0, end_dim: int = -1) -> flow.Tensor:
    if self.ndim == 0:
        return view(self, [1])
    start, end = start_dim % self.ndim, end_dim % self.ndim
    return view(_some(self), [*self.shape[:start], -1, *self.shape[end + 1 :]])


@native("aten.unflatten.int")
def unflatten(self: flow.Tensor, dim: int, sizes: Sequence[int]) -> flow.Tensor:
    dim %= self.ndim
    return view(_some(self), [*self.shape[:dim], *sizes, *self.shape[dim + 1 :]])


@native("aten.unsqueeze.default")
def unsqueeze(self: flow.Tensor, dim: int) -> flow.Tensor:
    dim %= self.ndim + 1
    return view(_some(self), [*self.shape[:dim], 1, *self.shape[dim:]])


@native("aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(self: flow.Tensor, dim: int | Sequence[int]) -> flow.Tensor:
    dims = {d % max(self.ndim, 1) for d in ([dim] if isinstance(dim, int) else dim)}
    return view(_some(self), [s for i, s in enumerate(self.shape) if not (i in dims and s == 1)])


@native("aten.permute.default")
def permute(self: flow.Tensor, dims: Sequence[int]) -> flow.Tensor:
    dims = [d % self.ndim for d in dims]
    shape = [self.shape[d] for d in dims]
    # Dimensions of one element may go anywhere.
    if [d for d in dims if self.shape[d] != 1] == [d for d in range(self.ndim) if self.shape[d] != 1]:
        return view(_some(self), shape)
    dense = dense_strides(self.shape)
    return strided(_some(self), shape, [dense[d] for d in dims])


@native("aten.transpose.int")
def transpose(self: flow.Tensor, dim0: int, dim1: int) -> flow.Tensor:
    dims = list(range(self.ndim))
    if dims:
        dim0, dim1 = dim0 % self.ndim, dim1 % self.ndim
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(self, dims)


@native("aten.expand.default")
def expand(self: flow.Tensor, size: Sequence[int], *, implicit: object = False) -> flow.Tensor:
    size = list(size)
    lead = len(size) - self.ndim
    shape = [1] * lead + list(self.shape)
    size = [shape[i] if s == -1 else s for i, s in enumerate(size)]
    if math.prod(size) == math.prod(shape):
        return view(_some(self), size)
    dense = dense_strides(shape)
    return strided(_some(self), size, [dense[i] if shape[i] == s else 0 for i, s in enumerate(size)])


@native("aten.slice.Tensor")
def slice_(self: flow.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> flow.Tensor:
    dim %= self.ndim
    size = self.shape[dim]
    begin, stop, _ = slice(start, end, None).indices(size)
    length = max(0, -(-(stop - begin) // step))
    shape = [*self.shape]
    shape[dim] = length
    return _part(self, dim, begin, length, step)


def _part(x: flow.Tensor, dim: int, begin: int, length: int, step: int = 1) -> flow.Tensor:
    shape = list(x.shape)
    shape[dim] = length
    if math.prod(shape) == 0:
        raise Refused("an empty tensor")
    strides = dense_strides(x.shape)
    offset = begin * strides[dim]
    strides[dim] *= step
    return strided(x, shape, strides, offset)


@native("aten.select.int")
def select(self: flow.Tensor, dim: int, index: int) -> flow.Tensor:
    dim %= self.ndim
    made = _part(self, dim, index % self.shape[dim], 1)
    return view(made, [s for i, s in enumerate(self.shape) if i != dim])


@native("aten.unfold.default")
def unfold(self: flow.Tensor, dimension: int, size: int, step: int) -> flow.Tensor:
    dim = dimension % self.ndim
    shape, strides = list(self.shape), list(dense_strides(self.shape))
    shape[dim] = (shape[dim] - size) // step + 1
    window = strides[dim]
    strides[dim] *= step
    return strided(_some(self), [*shape, size], [*strides, window])


@native("aten.chunk.default")
def chunk(self: flow.Tensor, chunks: int, dim: int = 0) -> tuple[flow.Tensor, ...]:
    return split(self, -(-self.shape[dim % self.ndim] // chunks), dim)


@native("aten.split.Tensor", "aten.split_with_sizes.default")
def split(self: flow.Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[flow.Tensor, ...]:
    dim %= self.ndim
    size = self.shape[dim]
    if isinstance(split_size, int):
        split_size = [min(split_size, size - i) for i in range(0, size, split_size)]
    begins = [sum(split_size[:i]) for i in range(len(split_size))]
    return tuple(_part(self, dim, begin, length) for begin, length in zip(begins, split_size))


@native("aten.cat.default")
def cat(tensors: Sequence[flow.Tensor], dim: int = 0) -> flow.Tensor:
    dtypes = {torch_dtype(t) for t in tensors}
    if len(dtypes) > 1 or any(math.prod(t.shape) == 0 for t in tensors):
        raise Refused("parts of several dtypes, or an empty one")
    dtype = dtypes.pop()
    dim %= tensors[0].ndim
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    rows = math.prod(shape[:dim])
    parts = [math.prod(t.shape[dim:]) * dtype.itemsize for t in tensors]
    return node("dfo_concat", list(tensors), shape, dtype, rows, parts)


@native("aten.stack.default")
def stack(tensors: Sequence[flow.Tensor], dim: int = 0) -> flow.Tensor:
    dim %= tensors[0].ndim + 1
    return cat([unsqueeze(t, dim) for t in tensors], dim)
