"""Functions of one tensor, and dtype conversion."""

import math

import torch

from .kernels import checked as _C
from .logic import chosen
from .registry import Refused, lowering
from .shape import expand
from .types import cast, fitting, floating, promoted, torch_dtype

_FLOAT_UNARY = {
    "exp": _C.exp, "log": _C.log, "sqrt": _C.sqrt, "rsqrt": _C.rsqrt, "sin": _C.sin, "cos": _C.cos,
    "tanh": _C.tanh, "sigmoid": _C.sigmoid, "erf": _C.erf, "reciprocal": _C.reciprocal, "log1p": _C.log1p,
    "expm1": _C.expm1, "atan": _C.atan, "tan": _C.tan,
}  # fmt: skip
_SAME_UNARY = {"relu": _C.relu, "silu": _C.silu}
_ROUNDING_UNARY = {"floor": _C.floor, "ceil": _C.ceil, "trunc": _C.trunc, "round": _C.rint}


def _unary(name, function):
    @lowering(f"aten.{name}.default")
    def lower(self):
        return function(self)


for _name, _function in _FLOAT_UNARY.items():
    _unary(_name, lambda x, f=_function: f(floating(x)))
for _name, _function in _SAME_UNARY.items():
    _unary(_name, _function)
for _name, _function in _ROUNDING_UNARY.items():
    # Integers are whole already; OneFlow has no integer kernel for these.
    _unary(_name, lambda x, f=_function: f(x) if torch_dtype(x).is_floating_point else x)


@lowering("aten.neg.default")
def neg(self):
    # OneFlow's negative makes floats of integers.
    return _C.negative(self) if torch_dtype(self).is_floating_point else _C.sub(0, self)


@lowering("aten.abs.default")
def abs_(self):
    return _C.abs(self)


@lowering("aten.square.default")
def square(self):
    return _C.square(self) if torch_dtype(self).is_floating_point else _C.mul(self, self)


@lowering("aten.logical_not.default")
def logical_not(self):
    return _C.logical_not(self)


@lowering("aten.bitwise_not.default")
def bitwise_not(self):
    if torch_dtype(self) != torch.bool:
        raise Refused("only bool tensors can be inverted")
    return _C.logical_not(self)


@lowering("aten.gelu.default")
def gelu(self, *, approximate="none"):
    if approximate == "tanh" and torch_dtype(self) == torch.float64:
        # OneFlow's own has its factors in float32.
        inner = _C.mul(_C.add(_C.mul(_C.mul(_C.mul(self, self), self), 0.044715), self), math.sqrt(2 / math.pi))
        return _C.mul(_C.mul(self, 0.5), _C.add(_C.tanh(inner), 1))
    return _C.gelu_with_approximate(self, approximate)


@lowering("aten.mish.default")
def mish(self):
    # OneFlow's own loses what is small: log(1 + y) instead of log1p(y).
    return _C.mul(self, _C.tanh(_C.log1p(_C.exp(self))))


@lowering("oneflow.quick_gelu.default")
def quick_gelu(self):
    """``x * sigmoid(1.702 x)``, put into the graph by `passes.fuse_quick_gelu`."""
    return _C.quick_gelu(self)


@lowering("aten.leaky_relu.default")
def leaky_relu(self, negative_slope=0.01):
    if torch_dtype(self) == torch.float64:
        # OneFlow keeps the slope in float32.
        return chosen(_C.less(self, 0), _C.mul(self, negative_slope), self)
    return _C.leaky_relu(self, negative_slope, False)


@lowering("aten.elu.default")
def elu(self, alpha=1, scale=1, input_scale=1):
    if (scale, input_scale) != (1, 1):
        raise Refused("scale and input_scale must be 1")
    return _C.elu(self, float(alpha))


@lowering("aten.softplus.default")
def softplus(self, beta=1, threshold=20):
    # As for mish.
    scaled = _C.mul(self, beta)
    return chosen(_C.less(scaled, threshold), _C.div(_C.log1p(_C.exp(scaled)), beta), self)


@lowering("aten.clamp.default")
def clamp(self, min=None, max=None):
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
def clamp_min(self, min):
    return clamp(self, min=min)


@lowering("aten.clamp_max.default")
def clamp_max(self, max):
    return clamp(self, max=max)


@lowering("aten.hardtanh.default")
def hardtanh(self, min_val=-1, max_val=1):
    return cast(clamp(self, min_val, max_val), torch_dtype(self))


@lowering("aten._to_copy.default")
def to_copy(self, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    return self if dtype is None else cast(self, dtype)


@lowering("aten.to.dtype")
def to_dtype(self, dtype, non_blocking=False, copy=False, memory_format=None):
    return cast(self, dtype)


@lowering("aten.to.dtype_layout")
def to_dtype_layout(
    self, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, copy=False, memory_format=None
):
    return self if dtype is None else cast(self, dtype)


@lowering("aten.to.device")
def to_device(self, device, dtype, non_blocking=False, copy=False, memory_format=None):
    return cast(self, dtype)


@lowering("aten.to.other")
def to_other(self, other, non_blocking=False, copy=False, memory_format=None):
    return cast(self, torch_dtype(other))


@lowering("aten.type_as.default")
def type_as(self, other):
    return cast(self, torch_dtype(other))


@lowering("aten.copy.default")
def copy(self, src, non_blocking=False):
    return expand(cast(src, torch_dtype(self)), list(self.shape))
