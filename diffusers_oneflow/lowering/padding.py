"""Padding, by concatenation: OneFlow's own takes no negative amounts and few dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import oneflow as flow

from .factory import filled
from .registry import lowering
from .shape import cat, expand, flip, slice_
from .types import torch_dtype


def _constant(x: flow.Tensor, dim: int, amount: int, after: bool, value: float | None) -> flow.Tensor:
    shape = list(x.shape)
    shape[dim] = amount
    return filled(shape, value, torch_dtype(x))


def _replicate(x: flow.Tensor, dim: int, amount: int, after: bool, value: float | None) -> flow.Tensor:
    edge = x.shape[dim] - 1 if after else 0
    size = list(x.shape)
    size[dim] = amount
    return expand(slice_(x, dim, edge, edge + 1), size)


def _reflect(x: flow.Tensor, dim: int, amount: int, after: bool, value: float | None) -> flow.Tensor:
    size = x.shape[dim]
    inside = slice_(x, dim, size - 1 - amount, size - 1) if after else slice_(x, dim, 1, amount + 1)
    return flip(inside, [dim])


def _circular(x: flow.Tensor, dim: int, amount: int, after: bool, value: float | None) -> flow.Tensor:
    size = x.shape[dim]
    return slice_(x, dim, 0, amount) if after else slice_(x, dim, size - amount, size)


_MODES = {"constant": _constant, "replicate": _replicate, "reflect": _reflect, "circular": _circular}


@lowering("aten.pad.default")
def pad(self: flow.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> flow.Tensor:
    return _padded(self, pad, mode, value)


@lowering("aten.constant_pad_nd.default")
def constant_pad_nd(self: flow.Tensor, pad: Sequence[int], value: float | None = 0) -> flow.Tensor:
    return _padded(self, pad, "constant", value)


def _padded(self: flow.Tensor, pad: Sequence[int], mode: str, value: float | None) -> flow.Tensor:
    for i in range(0, len(pad), 2):
        dim = self.ndim - 1 - i // 2
        before, after = pad[i], pad[i + 1]
        if before < 0 or after < 0:
            self = slice_(self, dim, max(-before, 0), self.shape[dim] - max(-after, 0))
        parts = [self]
        if before > 0:
            parts.insert(0, _MODES[mode](self, dim, before, False, value or 0))
        if after > 0:
            parts.append(_MODES[mode](self, dim, after, True, value or 0))
        self = cat(parts, dim)
    return self
