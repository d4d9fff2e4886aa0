"""Elementwise ops: unary functions, arithmetic, comparison, selection, dtype conversion."""

import math

import oneflow as flow
import torch

from ..errors import Unsupported
from .registry import lowering
from .types import cast, floating, promote, promoted, torch_dtype

_C = flow._C

_FLOAT_UNARY = {
    "exp": _C.exp, "log": _C.log, "sqrt": _C.sqrt, "rsqrt": _C.rsqrt, "sin": _C.sin, "cos": _C.cos,
    "tanh": _C.tanh, "sigmoid": _C.sigmoid, "erf": _C.erf, "reciprocal": _C.reciprocal, "log1p": _C.log1p,
    "expm1": _C.expm1, "atan": _C.atan, "tan": _C.tan,
}  # fmt: skip
_SAME_UNARY = {"relu": _C.relu, "silu": _C.silu, "mish": _C.mish}
_ROUNDING_UNARY = {"floor": _C.floor, "ceil": _C.ceil, "trunc": _C.trunc, "round": _C.rint}
_COMPARE = {
    "eq": _C.broadcast_equal, "ne": _C.not_equal, "lt": _C.less, "le": _C.less_equal,
    "gt": _C.greater, "ge": _C.greater_equal,
}  # fmt: skip


def _unary(name, function):
    @lowering(f"aten.{name}.default")
    def lower(self):
        return function(self)

    return lower


for _name, _function in _FLOAT_UNARY.items():
    _unary(_name, lambda x, f=_function: f(floating(x)))
for _name, _function in _SAME_UNARY.items():
    _unary(_name, _function)
for _name, _function in _ROUNDING_UNARY.items():
    # Integers are whole already; OneFlow has no integer kernel for these.
    _unary(_name, lambda x, f=_function: f(x) if torch_dtype(x).is_floating_point else x)


@lowering("aten.neg.default")
def neg(self):
    return _C.negative(self)


@lowering("aten.abs.default")
def abs_(self):
    return _C.abs(self)


@lowering("aten.square.default")
def square(self):
    return _C.square(self) if torch_dtype(self).is_floating_point else _C.mul(self, self)


@lowering("aten.logical_not.default", "aten.bitwise_not.default")
def logical_not(self):
    if torch_dtype(self) != torch.bool:
        raise Unsupported("aten.bitwise_not", "only bool tensors can be inverted")
    return _C.logical_not(self)


@lowering("aten.gelu.default")
def gelu(self, *, approximate="none"):
    return _C.gelu_with_approximate(self, approximate)


@lowering("oneflow.quick_gelu.default")
def quick_gelu(self):
    """``x * sigmoid(1.702 x)``, put into the graph by `passes.fuse_quick_gelu`."""
    return _C.quick_gelu(self)


@lowering("aten.leaky_relu.default")
def leaky_relu(self, negative_slope=0.01):
    return _C.leaky_relu(self, negative_slope, False)


@lowering("aten.elu.default")
def elu(self, alpha=1.0, scale=1.0, input_scale=1.0):
    if (scale, input_scale) != (1, 1):
        raise Unsupported("aten.elu.default", "scale and input_scale must be 1")
    return _C.elu(self, alpha)


@lowering("aten.softplus.default")
def softplus(self, beta=1.0, threshold=20.0):
    return _C.softplus(self, beta, threshold)


@lowering("aten.hardtanh.default", "aten.clamp.default")
def clamp(self, min=None, max=None):
    dtype = torch_dtype(self)
    for bound in (min, max):
        if bound is not None:
            dtype = torch.promote_types(dtype, promoted(self, bound))
    self = cast(self, dtype)
    if min is not None:
        self = _C.clamp_min(self, min)
    return self if max is None else _C.clamp_max(self, max)


@lowering("aten.clamp_min.default")
def clamp_min(self, min):
    return clamp(self, min=min)


@lowering("aten.clamp_max.default")
def clamp_max(self, max):
    return clamp(self, max=max)


def _scaled(other, alpha):
    """``alpha * other`` of ATen's add and sub."""
    if alpha == 1:
        return other
    return _C.mul(other, alpha) if isinstance(other, flow.Tensor) else other * alpha


def arithmetic(function, a, b):
    """`function` on two operands (tensors or scalars) in torch's promoted dtype.

    A scalar beside a tensor of another kind (an integer tensor times 0.5) is computed in the
    promoted dtype too; two bool tensors are refused, since OneFlow has no bool arithmetic.
    """
    dtype = promoted(a, b)
    if dtype == torch.bool:
        raise Unsupported(f"aten.{function.__name__}", "arithmetic between bool tensors")
    a, b = (cast(v, dtype) if isinstance(v, flow.Tensor) else v for v in (a, b))
    return function(a, b)


@lowering("aten.add.Tensor", "aten.add.Scalar")
def add(self, other, *, alpha=1):
    return arithmetic(_C.add, self, _scaled(other, alpha))


@lowering("aten.sub.Tensor", "aten.sub.Scalar")
def sub(self, other, *, alpha=1):
    return arithmetic(_C.sub, self, _scaled(other, alpha))


@lowering("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(self, other, alpha=1):
    return arithmetic(_C.sub, other, _scaled(self, alpha))


@lowering("aten.mul.Tensor", "aten.mul.Scalar")
def mul(self, other):
    return arithmetic(_C.mul, self, other)


@lowering("aten.div.Tensor", "aten.div.Scalar")
def div(self, other):
    a, b = promote(self, other)
    a = floating(a) if isinstance(a, flow.Tensor) else a
    if isinstance(b, flow.Tensor):
        return _C.div(a, cast(b, torch_dtype(a)) if isinstance(a, flow.Tensor) else floating(b))
    return _C.div(a, b)


@lowering("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(self, other, *, rounding_mode=None):
    if rounding_mode is None:
        return div(self, other)
    dtype = promoted(self, other)
    if not dtype.is_floating_point:
        raise Unsupported("aten.div.Tensor_mode", f"rounding_mode={rounding_mode!r} on integers")
    rounded = {"floor": _C.floor, "trunc": _C.trunc}[rounding_mode]
    return rounded(div(self, other))


@lowering("aten.maximum.default")
def maximum(self, other):
    return arithmetic(_C.maximum, self, other)


@lowering("aten.minimum.default")
def minimum(self, other):
    return arithmetic(_C.minimum, self, other)


@lowering("aten.pow.Tensor_Scalar")
def pow_scalar(self, exponent):
    dtype = promoted(self, exponent)
    if exponent == 2:
        return _C.mul(cast(self, dtype), cast(self, dtype))
    if not dtype.is_floating_point:
        raise Unsupported("aten.pow.Tensor_Scalar", "integer powers other than 2")
    if exponent == 0.5:
        return _C.sqrt(cast(self, dtype))
    return _C.pow(cast(self, dtype), exponent)


@lowering("aten.pow.Tensor_Tensor")
def pow_tensor(self, exponent):
    return arithmetic(_C.pow, self, exponent)


@lowering("aten.pow.Scalar")
def pow_base(self, exponent):
    # OneFlow has no scalar base; exp(y ln b) loses accuracy only for large |y ln b|.
    if self <= 0:
        raise Unsupported("aten.pow.Scalar", "a base that is not positive")
    exponent = cast(exponent, promoted(self, exponent))
    return _C.exp(_C.mul(floating(exponent), math.log(self)))


def _compare(name, function):
    @lowering(f"aten.{name}.Tensor", f"aten.{name}.Scalar")
    def lower(self, other):
        dtype = promoted(self, other)
        if dtype == torch.bool:
            dtype = torch.int8
        self = cast(self, dtype)
        if isinstance(other, flow.Tensor):
            return function(self, cast(other, dtype))
        return function(self, int(other) if isinstance(other, bool) else other)

    return lower


for _name, _function in _COMPARE.items():
    _compare(_name, _function)


def _logical(name, function):
    @lowering(f"aten.logical_{name}.default", f"aten.bitwise_{name}.Tensor")
    def lower(self, other):
        if torch_dtype(self) != torch.bool or torch_dtype(other) != torch.bool:
            raise Unsupported(f"aten.{name}", "only bool tensors are combined")
        return function(self, other)

    return lower


_logical("and", _C.logical_and)
_logical("or", _C.logical_or)
_logical("xor", _C.logical_xor)


@lowering("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def where(condition, self, other):
    dtype = promoted(self, other)
    values = []
    for value in (self, other):
        if not isinstance(value, flow.Tensor):
            value = _C.constant([], value, dtype=cast_to(dtype), device=condition.device)
        values.append(cast(value, dtype))
    if dtype == torch.bool:
        # OneFlow's where has no bool kernel.
        values = [cast(v, torch.int8) for v in values]
    out = _C.where(condition, *values)
    return cast(out, torch.bool) if dtype == torch.bool else out


def cast_to(dtype: torch.dtype) -> flow.dtype:
    """OneFlow's dtype for a torch dtype (bool is made as int8 and cast by the caller)."""
    from .types import flow_dtype

    return flow_dtype(torch.int8 if dtype == torch.bool else dtype)


@lowering("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(self, mask, value):
    return where(mask, cast_value(value, self), self)


def cast_value(value, like):
    """A fill value in the dtype of `like` (masked_fill keeps self's dtype)."""
    return cast(value, torch_dtype(like)) if isinstance(value, flow.Tensor) else value


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
