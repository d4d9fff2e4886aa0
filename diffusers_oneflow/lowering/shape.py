"""Ops that move, join or cut data without computing on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import oneflow as flow

from .kernels import checked as _C
from .registry import Refused, lowering
from .types import cast, promoted, torch_dtype


def _axis(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def reshaped(x: flow.Tensor, shape: Sequence[int]) -> flow.Tensor:
    """`x` with a new shape; one entry may be -1. OneFlow's kernels take dense tensors, so this is always a view."""
    shape = list(shape)
    if -1 in shape:
        known = math.prod(s for s in shape if s != -1)
        shape[shape.index(-1)] = math.prod(x.shape) // known
    return x if list(x.shape) == shape else _C.reshape(x, shape)


@lowering("aten.view.default", "aten._unsafe_view.default")
def view(self: flow.Tensor, size: Sequence[int]) -> flow.Tensor:
    return reshaped(self, size)


@lowering("aten.reshape.default")
def reshape(self: flow.Tensor, shape: Sequence[int]) -> flow.Tensor:
    return reshaped(self, shape)


@lowering("aten.flatten.using_ints")
def flatten(self: flow.Tensor, start_dim: int = 0, end_dim: int = -1) -> flow.Tensor:
    if self.ndim == 0:
        return reshaped(self, [1])
    start, end = _axis(start_dim, self.ndim), _axis(end_dim, self.ndim)
    return reshaped(self, [*self.shape[:start], -1, *self.shape[end + 1 :]])


@lowering("aten.unflatten.int")
def unflatten(self: flow.Tensor, dim: int, sizes: Sequence[int]) -> flow.Tensor:
    dim = _axis(dim, self.ndim)
    sizes = list(sizes)
    if -1 in sizes:
        sizes[sizes.index(-1)] = self.shape[dim] // -math.prod(sizes)
    return reshaped(self, [*self.shape[:dim], *sizes, *self.shape[dim + 1 :]])


@lowering("aten.unsqueeze.default")
def unsqueeze(self: flow.Tensor, dim: int) -> flow.Tensor:
    dim = _axis(dim, self.ndim + 1)
    return reshaped(self, [*self.shape[:dim], 1, *self.shape[dim:]])


@lowering("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default")
def squeeze(self: flow.Tensor, dim: int | Sequence[int] | None = None) -> flow.Tensor:
    dims = range(self.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {_axis(d, self.ndim) for d in dims}
    return reshaped(self, [s for i, s in enumerate(self.shape) if not (i in gone and s == 1)])


@lowering("aten.permute.default")
def permute(self: flow.Tensor, dims: Sequence[int]) -> flow.Tensor:
    dims = [_axis(d, self.ndim) for d in dims]
    if dims == list(range(self.ndim)):
        return self
    if _spoilt(self.shape, dims):
        last = max(d for d in dims if self.shape[d] != 1)
        middle = self.shape[last] // 2
        parts = sliced(self, last, 0, middle), sliced(self, last, middle, 2 * middle)
        return _C.concat([_C.permute(part, dims) for part in parts], dims.index(last))
    return _C.permute(self, dims)


def _spoilt(shape: Sequence[int], dims: list[int]) -> bool:
    """Whether OneFlow's kernel would lose the lowest 6 bits of numbers of 4 bytes.

    Measured: it does (oneDNN does) where 8 numbers lie together in what is read, and 8 others in what is written,
    dimensions that stay neighbours taken as one.
    """
    order = [d for d in dims if shape[d] != 1]
    place = {d: i for i, d in enumerate(sorted(order))}
    runs: list[list[int]] = []
    for d in order:
        if runs and place[d] == place[runs[-1][-1]] + 1:
            runs[-1].append(d)
        else:
            runs.append([d])
    read: Any = next((run for run in runs if place[run[-1]] == len(order) - 1), None)
    return len(runs) > 1 and read is not runs[-1] and all(math.prod([shape[d] for d in r]) == 8 for r in (read, runs[-1]))


@lowering("aten.transpose.int")
def transpose(self: flow.Tensor, dim0: int, dim1: int) -> flow.Tensor:
    dims = list(range(self.ndim))
    if dims:
        dim0, dim1 = _axis(dim0, self.ndim), _axis(dim1, self.ndim)
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permute(self, dims)


@lowering("aten.t.default")
def t(self: flow.Tensor) -> flow.Tensor:
    return permute(self, list(range(self.ndim))[::-1])


@lowering("aten.movedim.int")
def movedim_int(self: flow.Tensor, source: int, destination: int) -> flow.Tensor:
    return movedim(self, [source], [destination])


@lowering("aten.movedim.intlist")
def movedim(self: flow.Tensor, source: Sequence[int], destination: Sequence[int]) -> flow.Tensor:
    places = {_axis(d, self.ndim): _axis(s, self.ndim) for s, d in zip(source, destination)}
    rest = (d for d in range(self.ndim) if d not in places.values())
    return permute(self, [places[d] if d in places else next(rest) for d in range(self.ndim)])


@lowering("aten.expand.default")
def expand(self: flow.Tensor, size: Sequence[int], *, implicit: object = False) -> flow.Tensor:
    lead = len(size) - self.ndim
    size = [self.shape[i - lead] if s == -1 else s for i, s in enumerate(size)]
    if list(self.shape) == size:
        return self
    return _C.broadcast_to(reshaped(self, [1] * lead + list(self.shape)), size)


@lowering("aten.expand_as.default")
def expand_as(self: flow.Tensor, other: flow.Tensor) -> flow.Tensor:
    return expand(self, list(other.shape))


@lowering("aten.clone.default", "aten.contiguous.default")
def clone(self: flow.Tensor, *, memory_format: object = None) -> flow.Tensor:
    return self


@lowering("aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default", "aten.detach_.default")
def alias(self: flow.Tensor) -> flow.Tensor:
    return self


@lowering("aten.dropout.default")
def dropout(input: flow.Tensor, p: float, train: bool) -> flow.Tensor:
    if train and p:
        raise Refused("the module is in training mode; call .eval()")
    return input


def sliced(x: flow.Tensor, dim: int, start: int, end: int, step: int = 1) -> flow.Tensor:
    """``x[start:end:step]`` along `dim`, with bounds already clipped to the size."""
    starts, stops, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
    starts[dim], stops[dim], steps[dim] = start, end, step
    return _C.slice(x, starts, stops, steps)


@lowering("aten.slice.Tensor")
def slice_(self: flow.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> flow.Tensor:
    dim = _axis(dim, self.ndim)
    start, end, step = slice(start, end, step).indices(self.shape[dim])
    if (start, end, step) == (0, self.shape[dim], 1):
        return self
    if end <= start:
        raise Refused("an empty result")
    return sliced(self, dim, start, end, step)


@lowering("aten.narrow.default")
def narrow(self: flow.Tensor, dim: int, start: int, length: int) -> flow.Tensor:
    return slice_(self, dim, start, start + length)


@lowering("aten.select.int")
def select(self: flow.Tensor, dim: int, index: int) -> flow.Tensor:
    dim = _axis(dim, self.ndim)
    index = _axis(index, self.shape[dim])
    picked = sliced(self, dim, index, index + 1)
    return reshaped(picked, [s for i, s in enumerate(self.shape) if i != dim])


@lowering("aten.split.sizes")
def split_sizes(self: flow.Tensor, split_size: Sequence[int], dim: int = 0) -> list[flow.Tensor]:
    return split_with_sizes(self, split_size, dim)


@lowering("aten.split_with_sizes.default")
def split_with_sizes(self: flow.Tensor, split_sizes: Sequence[int], dim: int = 0) -> list[flow.Tensor]:
    dim, parts, at = _axis(dim, self.ndim), [], 0
    for size in split_sizes:
        parts.append(slice_(self, dim, at, at + size))
        at += size
    return parts


@lowering("aten.split.Tensor")
def split(self: flow.Tensor, split_size: int, dim: int = 0) -> list[flow.Tensor]:
    total = self.shape[_axis(dim, self.ndim)]
    return split_with_sizes(self, [min(split_size, total - at) for at in range(0, total, split_size)], dim)


@lowering("aten.chunk.default")
def chunk(self: flow.Tensor, chunks: int, dim: int = 0) -> list[flow.Tensor]:
    return split(self, -(-self.shape[_axis(dim, self.ndim)] // chunks), dim)


@lowering("aten.unbind.int")
def unbind(self: flow.Tensor, dim: int = 0) -> list[flow.Tensor]:
    return [select(self, dim, i) for i in range(self.shape[_axis(dim, self.ndim)])]


@lowering("aten.cat.default")
def cat(tensors: Sequence[flow.Tensor], dim: int = 0) -> flow.Tensor:
    dtype = torch_dtype(tensors[0])
    for other in tensors[1:]:
        dtype = promoted(cast(tensors[0], dtype), other)
    tensors = [cast(x, dtype) for x in tensors]
    return tensors[0] if len(tensors) == 1 else _C.concat(tensors, _axis(dim, tensors[0].ndim))


@lowering("aten.stack.default")
def stack(tensors: Sequence[flow.Tensor], dim: int = 0) -> flow.Tensor:
    return cat([unsqueeze(x, _axis(dim, x.ndim + 1)) for x in tensors], _axis(dim, tensors[0].ndim + 1))


@lowering("aten.unfold.default")
def unfold(self: flow.Tensor, dimension: int, size: int, step: int) -> flow.Tensor:
    dim = _axis(dimension, self.ndim)
    last = self.shape[dim] - size
    return stack([slice_(self, dim, i, last + i + 1, step) for i in range(size)], self.ndim)


@lowering("aten.repeat.default")
def repeat(self: flow.Tensor, repeats: Sequence[int]) -> flow.Tensor:
    x = reshaped(self, [1] * (len(repeats) - self.ndim) + list(self.shape))
    for dim, times in enumerate(repeats):
        if times != 1:
            around = math.prod(x.shape[:dim]), math.prod(x.shape[dim:])
            wide = expand(reshaped(x, [around[0], 1, around[1]]), [around[0], times, around[1]])
            x = reshaped(wide, [*x.shape[:dim], times * x.shape[dim], *x.shape[dim + 1 :]])
    return x


@lowering("aten.repeat_interleave.self_int")
def repeat_interleave(self: flow.Tensor, repeats: int, dim: int | None = None, *, output_size: object = None) -> flow.Tensor:
    if dim is None:
        self, dim = reshaped(self, [-1]), 0
    dim = _axis(dim, self.ndim)
    before, after = list(self.shape[: dim + 1]), list(self.shape[dim + 1 :])
    rows, row = math.prod(before), math.prod(after)
    x = expand(reshaped(self, [rows, 1, row]), [rows, repeats, row])
    return reshaped(x, [*before[:-1], before[-1] * repeats, *after])


@lowering("aten.flip.default")
def flip(self: flow.Tensor, dims: Sequence[int]) -> flow.Tensor:
    return _C.flip(self, [_axis(d, self.ndim) for d in dims]) if dims and self.ndim else self


@lowering("aten.roll.default")
def roll(self: flow.Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> flow.Tensor:
    if not dims:
        return reshaped(roll(reshaped(self, [-1]), shifts, [0]), self.shape)
    for shift, dim in zip(shifts, dims):
        size = self.shape[_axis(dim, self.ndim)]
        if shift % size:
            cut = size - shift % size
            self = cat([slice_(self, dim, cut), slice_(self, dim, 0, cut)], dim)
    return self


@lowering("aten.pixel_shuffle.default")
def pixel_shuffle(self: flow.Tensor, upscale_factor: int) -> flow.Tensor:
    *lead, c, h, w = self.shape
    r, n = upscale_factor, len(lead)
    x = reshaped(self, [*lead, c // (r * r), r, r, h, w])
    x = permute(x, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return reshaped(x, [*lead, c // (r * r), h * r, w * r])


@lowering("aten.pixel_unshuffle.default")
def pixel_unshuffle(self: flow.Tensor, downscale_factor: int) -> flow.Tensor:
    *lead, c, h, w = self.shape
    r, n = downscale_factor, len(lead)
    x = reshaped(self, [*lead, c, h // r, r, w // r, r])
    x = permute(x, [*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return reshaped(x, [*lead, c * r * r, h // r, w // r])
