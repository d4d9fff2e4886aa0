"""Arithmetic on two operands, in torch's promoted dtype."""

from __future__ import annotations

from collections.abc import Callable

import oneflow as flow
import torch

from .factory import filled
from .kernels import checked as _C
from .logic import chosen
from .registry import Refused, lowering
from .types import Operand, cast, promoted, torch_dtype

# oneDNN adds tensors of these and stops at their largest value; OneFlow's own subtraction wraps around.
_SATURATING = {flow.uint8, flow.int8, flow.int32}


def arithmetic(function: Callable[..., flow.Tensor], a: Operand, b: Operand) -> flow.Tensor:
    """`function` on two operands (tensors or scalars, one at least a tensor) in torch's promoted dtype."""
    dtype = promoted(a, b)
    a, b = (cast(v, dtype) if isinstance(v, flow.Tensor) else v for v in (a, b))
    return function(a, b)


def _on_bool(function: Callable[..., flow.Tensor], a: Operand, b: Operand) -> flow.Tensor | None:
    """`function` of logic on two bool operands, or None if they are not both bool."""
    if promoted(a, b) != torch.bool:
        return None
    return function(*(v if isinstance(v, flow.Tensor) else filled([], int(v), torch.bool) for v in (a, b)))


def _sum(a: Operand, b: Operand) -> flow.Tensor:
    """``a + b``; whole numbers wrap around as in torch."""
    if all(isinstance(v, flow.Tensor) and v.dtype in _SATURATING for v in (a, b)):
        return _C.sub(a, _C.mul(b, -1))
    return _C.add(a, b)


def _scaled(value: Operand, alpha: Operand, beside: Operand) -> Operand:
    """``alpha * value`` of ATen's add and sub, in the dtype of the result."""
    if alpha == 1:
        return value
    return _C.mul(cast(value, promoted(value, beside)), alpha) if isinstance(value, flow.Tensor) else value * alpha


def add(self: flow.Tensor, other: Operand, *, alpha: Operand = 1) -> flow.Tensor:
    """``self + alpha * other``; on bool tensors "or", as in torch."""
    if alpha == 1 and (either := _on_bool(_C.logical_or, self, other)) is not None:
        return either
    return arithmetic(_sum, self, _scaled(other, alpha, self))


lowering("aten.add.Tensor")(add)


@lowering("aten.add.Scalar")
def add_scalar(self: flow.Tensor, other: Operand, alpha: Operand = 1) -> flow.Tensor:
    return add(self, other, alpha=alpha)


@lowering("aten.sub.Tensor")
def sub(self: flow.Tensor, other: Operand, *, alpha: Operand = 1) -> flow.Tensor:
    return arithmetic(_C.sub, self, _scaled(other, alpha, self))


@lowering("aten.sub.Scalar")
def sub_scalar(self: flow.Tensor, other: Operand, alpha: Operand = 1) -> flow.Tensor:
    return sub(self, other, alpha=alpha)


@lowering("aten.rsub.Tensor")
def rsub(self: flow.Tensor, other: Operand, *, alpha: Operand = 1) -> flow.Tensor:
    return arithmetic(_C.sub, other, _scaled(self, alpha, other))


@lowering("aten.rsub.Scalar")
def rsub_scalar(self: flow.Tensor, other: Operand, alpha: Operand = 1) -> flow.Tensor:
    return rsub(self, other, alpha=alpha)


@lowering("aten.mul.Tensor", "aten.mul.Scalar")
def mul(self: flow.Tensor, other: Operand) -> flow.Tensor:
    both = _on_bool(_C.logical_and, self, other)
    return arithmetic(_C.mul, self, other) if both is None else both


@lowering("aten.div.Tensor", "aten.div.Scalar")
def div(self: flow.Tensor, other: Operand) -> flow.Tensor:
    dtype = promoted(self, other)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    a, b = (cast(v, dtype) if isinstance(v, flow.Tensor) else v for v in (self, other))
    return _C.div(a, b)


@lowering("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(self: flow.Tensor, other: Operand, *, rounding_mode: str | None) -> flow.Tensor:
    if rounding_mode is None:
        return div(self, other)
    rounded = {"floor": _C.floor, "trunc": _C.trunc}[rounding_mode]
    dtype = promoted(self, other)
    if dtype.is_floating_point:
        return rounded(div(self, other))
    # By zero torch raises; a graph could not.
    if isinstance(other, flow.Tensor) or other == 0:
        raise Refused("whole-number division by a tensor")
    # float64 is exact here up to 2**53.
    return cast(rounded(_C.div(cast(self, torch.float64), other)), dtype)


@lowering("aten.floor_divide.default")
def floor_divide(self: flow.Tensor, other: Operand) -> flow.Tensor:
    return div_mode(self, other, rounding_mode="floor")


@lowering("aten.maximum.default")
def maximum(self: flow.Tensor, other: Operand) -> flow.Tensor:
    either = _on_bool(_C.logical_or, self, other)
    return arithmetic(_propagating(_C.maximum), self, other) if either is None else either


@lowering("aten.minimum.default")
def minimum(self: flow.Tensor, other: Operand) -> flow.Tensor:
    both = _on_bool(_C.logical_and, self, other)
    return arithmetic(_propagating(_C.minimum), self, other) if both is None else both


@lowering("aten.clamp.Tensor")
def clamp(self: flow.Tensor, min: flow.Tensor | None = None, max: flow.Tensor | None = None) -> flow.Tensor:
    """Between two tensors; where they cross, `max` counts."""
    made = self if min is None else maximum(self, min)
    return made if max is None else minimum(made, max)


def _propagating(function: Callable[..., flow.Tensor]) -> Callable[..., flow.Tensor]:
    """`function`, with NaN wherever an operand is: OneFlow minds one of them only."""

    def propagate(a: flow.Tensor, b: flow.Tensor) -> flow.Tensor:
        made = function(a, b)
        if not torch_dtype(made).is_floating_point:
            return made
        for operand in (a, b):
            made = chosen(_C.not_equal(operand, operand), operand, made)
        return made

    return propagate


@lowering("aten.pow.Tensor_Scalar")
def pow_scalar(self: flow.Tensor, exponent: float) -> flow.Tensor:
    x = cast(self, promoted(self, exponent))
    whole = isinstance(exponent, int) or exponent == 2
    if whole and 1 <= exponent <= 4:
        power = x
        for _ in range(int(exponent) - 1):
            power = _C.mul(power, x)
        return power
    if exponent == 0:
        return filled(x.shape, 1, torch_dtype(x))
    return _C.sqrt(x) if exponent == 0.5 else _C.pow(x, exponent)


@lowering("aten.pow.Tensor_Tensor")
def pow_tensor(self: flow.Tensor, exponent: Operand) -> flow.Tensor:
    return arithmetic(_C.pow, self, exponent)


@lowering("aten.pow.Scalar")
def pow_base(self: float, exponent: flow.Tensor) -> flow.Tensor:
    dtype = promoted(self, exponent)
    # float64 is exact here up to 2**53.
    within = dtype if dtype.is_floating_point else torch.float64
    return cast(_C.pow(filled([], self, within), cast(exponent, within)), dtype)
