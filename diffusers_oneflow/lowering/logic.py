"""Comparison, logic and selection."""

from __future__ import annotations

from collections.abc import Callable

import oneflow as flow
import torch

from .factory import filled
from .kernels import checked as _C
from .registry import Refused, lowering
from .shape import reshaped
from .types import Operand, cast, fitting, promoted, torch_dtype

_COMPARE = {
    "eq": _C.broadcast_equal, "ne": _C.not_equal, "lt": _C.less, "le": _C.less_equal,
    "gt": _C.greater, "ge": _C.greater_equal,
}  # fmt: skip
_LOGIC = {"and": _C.logical_and, "or": _C.logical_or, "xor": _C.logical_xor}


def _compare(name: str, function: Callable[..., flow.Tensor]) -> flow.Tensor:
    @lowering(f"aten.{name}.Tensor", f"aten.{name}.Scalar")
    def lower(self: flow.Tensor, other: Operand) -> flow.Tensor:
        dtype = promoted(self, other)
        if dtype == torch.bool:
            dtype = torch.int8
        self = cast(self, dtype)
        if isinstance(other, flow.Tensor):
            other = cast(other, dtype)
            # OneFlow's greater and greater_equal are true for NaN.
            swapped = {"gt": _C.less, "ge": _C.less_equal}.get(name)
            return swapped(other, self) if swapped else function(self, other)
        return function(self, fitting(int(other) if isinstance(other, bool) else other, dtype))


def _logical(name: str, function: Callable[..., flow.Tensor]) -> flow.Tensor:
    @lowering(f"aten.logical_{name}.default")
    def lower(self: flow.Tensor, other: Operand) -> flow.Tensor:
        return function(cast(self, torch.bool), cast(other, torch.bool))

    @lowering(f"aten.bitwise_{name}.Tensor")
    def lower_bits(self: flow.Tensor, other: Operand) -> flow.Tensor:
        if torch_dtype(self) != torch.bool or torch_dtype(other) != torch.bool:
            raise Refused("only bool tensors are combined")
        return function(self, other)


for _name, _function in _COMPARE.items():
    _compare(_name, _function)
for _name, _function in _LOGIC.items():
    _logical(_name, _function)


@lowering("aten.isinf.default")
def isinf(self: flow.Tensor) -> flow.Tensor:
    """Where a number is infinite; integers never are."""
    if not torch_dtype(self).is_floating_point:
        return _C.not_equal(self, self) if torch_dtype(self) != torch.bool else _C.logical_xor(self, self)
    return _C.broadcast_equal(_C.abs(self), float("inf"))


def chosen(condition: flow.Tensor, a: flow.Tensor, b: flow.Tensor) -> flow.Tensor:
    """`a` where the bool `condition` holds and `b` elsewhere; tensors of one dtype that broadcast."""
    # OneFlow ends the process unless all have the same number of dimensions.
    ndim = max(condition.ndim, a.ndim, b.ndim)
    return _C.where(*(reshaped(v, [1] * (ndim - v.ndim) + list(v.shape)) for v in (condition, a, b)))


@lowering("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def where(condition: flow.Tensor, self: Operand, other: Operand) -> flow.Tensor:
    dtype = promoted(self, other)
    # OneFlow's where has no uint8 kernel.
    within = torch.int32 if dtype == torch.uint8 else dtype
    values = (cast(v, within) if isinstance(v, flow.Tensor) else filled([], v, within) for v in (self, other))
    return cast(chosen(cast(condition, torch.bool), *values), dtype)


@lowering("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(self: flow.Tensor, mask: flow.Tensor, value: Operand) -> flow.Tensor:
    dtype = torch_dtype(self)
    # The result has the dtype of self, whatever that of the value is.
    value = cast(value, dtype) if isinstance(value, flow.Tensor) else filled([], value, dtype)
    return where(mask, value, self)
