"""Functions of one tensor, and dtype conversion."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import oneflow as flow
import torch

from .kernels import checked as _C
from .logic import chosen
from .registry import Refused, lowering
from .shape import expand
from .types import Operand, cast, fitting, floating, promoted, torch_dtype

_FLOAT_UNARY = {
    "exp": _C.exp, "log": _C.log, "sqrt": _C.sqrt, "rsqrt": _C.rsqrt, "sin": _C.sin, "cos": _C.cos,
    "tanh": _C.tanh, "sigmoid": _C.sigmoid, "erf": _C.erf, "reciprocal": _C.reciprocal, "log1p": _C.log1p,
    "expm1": _C.expm1, "atan": _C.atan, "tan": _C.tan,
}  # fmt: skip
_SAME_UNARY = {"relu": _C.relu, "silu": _C.silu}
_ROUNDING_UNARY = {"floor": _C.floor, "ceil": _C.ceil, "trunc": _C.trunc, "round": _C.rint}


def _unary(name: str, function: Callable[[flow.Tensor], flow.Tensor]) -> flow.Tensor:
    @lowering(f"aten.{name}.default")
    def lower(self: flow.Tensor) -> flow.Tensor:
        return function(self)


def _of_float(function: Callable[[flow.Tensor], flow.Tensor], x: flow.Tensor) -> flow.Tensor:
    return function(floating(x))


def _rounded(function: Callable[[flow.Tensor], flow.Tensor], x: flow.Tensor) -> flow.Tensor:
    # Integers are whole already; OneFlow has no integer kernel for these.
    return function(x) if torch_dtype(x).is_floating_point else x


for _name, _function in _FLOAT_UNARY.items():
    _unary(_name, functools.partial(_of_float, _function))
for _name, _function in _SAME_UNARY.items():
    _unary(_name, _function)
for _name, _function in _ROUNDING_UNARY.items():
    _unary(_name, functools.partial(_rounded, _function))


@lowering("aten.neg.default")
def neg(self: flow.Tensor) -> flow.Tensor:
    # OneFlow's negative makes floats of integers.
    return _C.negative(self) if torch_dtype(self).is_floating_point else _C.sub(0, self)


@lowering("aten.abs.default")
def abs_(self: flow.Tensor) -> flow.Tensor:
    return _C.abs(self)


@lowering("aten.square.default")
def square(self: flow.Tensor) -> flow.Tensor:
    return _C.square(self) if torch_dtype(self).is_floating_point else _C.mul(self, self)


@lowering("aten.logical_not.default")
def logical_not(self: flow.Tensor) -> flow.Tensor:
    return _C.logical_not(self)


@lowering("aten.bitwise_not.default")
def bitwise_not(self: flow.Tensor) -> flow.Tensor:
    if torch_dtype(self) != torch.bool:
        raise Refused("only bool tensors can be inverted")
    return _C.logical_not(self)


@lowering("aten.gelu.default")
def gelu(self: flow.Tensor, *, approximate: str = "none") -> flow.Tensor:
    if approximate == "tanh" and torch_dtype(self) == torch.float64:
        # OneFlow's own has its factors in float32.
        inner = _C.mul(_C.add(_C.mul(_C.mul(_C.mul(self, self), self), 0.044715), self), math.sqrt(2 / math.pi))
        return _C.mul(_C.mul(self, 0.5), _C.add(_C.tanh(inner), 1))
    return _C.gelu_with_approximate(self, approximate)


@lowering("aten.mish.default")
def mish(self: flow.Tensor) -> flow.Tensor:
    # OneFlow's own loses what is small: log(1 + y) instead of log1p(y).
    return _C.mul(self, _C.tanh(_C.log1p(_C.exp(self))))


@lowering("oneflow.quick_gelu.default")
def quick_gelu(self: flow.Tensor) -> flow.Tensor:
    """``x * sigmoid(1.702 x)``, put into the graph by `passes.fuse_quick_gelu`."""
    return _C.quick_gelu(self)


@lowering("aten.leaky_relu.default")
def leaky_relu(self: flow.Tensor, negative_slope: float = 0.01) -> flow.Tensor:
    if torch_dtype(self) == torch.float64:
        # OneFlow keeps the slope in float32.
        return chosen(_C.less(self, 0), _C.mul(self, negative_slope), self)
    return _C.leaky_relu(self, negative_slope, False)


@lowering("aten.elu.default")
def elu(self: flow.Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> flow.Tensor:
    if (scale, input_scale) != (1, 1):
        raise Refused("scale and input_scale must be 1")
    return _C.elu(self, float(alpha))


@lowering("aten.softplus.default")
def softplus(self: flow.Tensor, beta: float = 1, threshold: float = 20) -> flow.Tensor:
    # As for mish.
    scaled = _C.mul(self, beta)
    return chosen(_C.less(scaled, threshold), _C.div(_C.log1p(_C.exp(scaled)), beta), self)


@lowering("aten.clamp.default")
def clamp(self: flow.Tensor, min: Operand = None, max: Operand = None) -> flow.Tensor:
    dtype = torch_dtype(self)
    for bound in (min, max):
        if bound is not None:
            dtype = torch.promote_types(dtype, promoted(self, bound))
    # There is no uint8 kernel.
    x = cast(self, torch.int32 if dtype == torch.uint8 else dtype)
    if min is not None:
        x = _C.clamp_min(x, fitting(min, dtype))
    if max is not None:
        x = _C.clamp_max(x, fitting(max, dtype))
    return cast(x, dtype)


@lowering("aten.clamp_min.default")
def clamp_min(self: flow.Tensor, min: Operand) -> flow.Tensor:
    return clamp(self, min=min)


@lowering("aten.clamp_max.default")
def clamp_max(self: flow.Tensor, max: Operand) -> flow.Tensor:
    return clamp(self, max=max)


@lowering("aten.hardtanh.default")
def hardtanh(self: flow.Tensor, min_val: float = -1, max_val: float = 1) -> flow.Tensor:
    return cast(clamp(self, min_val, max_val), torch_dtype(self))


@lowering("aten._to_copy.default")
def to_copy(
    self: flow.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    non_blocking: object = False,
    memory_format: object = None,
) -> flow.Tensor:
    return self if dtype is None else cast(self, dtype)


@lowering("aten.to.dtype")
def to_dtype(
    self: flow.Tensor, dtype: torch.dtype, non_blocking: object = False, copy: object = False, memory_format: object = None
) -> flow.Tensor:
    return cast(self, dtype)


@lowering("aten.to.dtype_layout")
def to_dtype_layout(
    self: flow.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    non_blocking: object = False,
    copy: object = False,
    memory_format: object = None,
) -> flow.Tensor:
    return self if dtype is None else cast(self, dtype)


@lowering("aten.to.device")
def to_device(
    self: flow.Tensor,
    device: object,
    dtype: torch.dtype,
    non_blocking: object = False,
    copy: object = False,
    memory_format: object = None,
) -> flow.Tensor:
    return cast(self, dtype)


@lowering("aten.to.other")
def to_other(
    self: flow.Tensor, other: Operand, non_blocking: object = False, copy: object = False, memory_format: object = None
) -> flow.Tensor:
    return cast(self, torch_dtype(other))


@lowering("aten.type_as.default")
def type_as(self: flow.Tensor, other: Operand) -> flow.Tensor:
    return cast(self, torch_dtype(other))


@lowering("aten.copy.default")
def copy(self: flow.Tensor, src: flow.Tensor, non_blocking: object = False) -> flow.Tensor:
    return expand(cast(src, torch_dtype(self)), list(self.shape))
