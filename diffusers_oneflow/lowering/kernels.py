"""OneFlow's functions, checked before they are called.

A kernel that OneFlow lacks shows only when a graph is compiled, and some of its checks end the process:
so lowerings call OneFlow through `checked` alone, which refuses dtypes without a CPU kernel and empty tensors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import oneflow as flow

from .registry import Refused

_FLOAT = {flow.float32, flow.float64}
_NUMBER = _FLOAT | {flow.int64, flow.int32, flow.int8, flow.uint8}
_ANY = _NUMBER | {flow.bool}
_MOVED = _ANY | {flow.float16, flow.bfloat16}

# Measured with oneflow 0.9.0: the dtypes in which a function has a CPU kernel and keeps to torch's result.
_DTYPES = {
    # Functions of one number. Integers would be computed in float32, which `types.floating` says openly.
    **dict.fromkeys(
        ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "tan", "tanh", "sigmoid", "erf", "reciprocal", "log1p", "expm1", "atan",
         "silu", "mish", "gelu_with_approximate", "quick_gelu", "leaky_relu", "elu", "softplus",
         "floor", "ceil", "trunc", "rint", "negative", "square", "pow"), _FLOAT),
    **dict.fromkeys(("relu", "abs"), _NUMBER),
    **dict.fromkeys(("clamp_min", "clamp_max"), _NUMBER - {flow.uint8}),
    # Of two.
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum", "fmod"), _NUMBER),
    **dict.fromkeys(("broadcast_equal", "not_equal", "less", "less_equal", "greater", "greater_equal"), _ANY),
    **dict.fromkeys(("logical_not", "logical_and", "logical_or", "logical_xor"), _ANY),
    "where": _ANY - {flow.uint8},
    # Reductions and scans; sums of small integers come out as int64.
    **dict.fromkeys(("reduce_sum", "cumsum"), _FLOAT | {flow.int64}),
    "reduce_mean": _FLOAT,
    **dict.fromkeys(("reduce_max", "reduce_min"), _ANY),
    **dict.fromkeys(("argmax", "argmin"), _NUMBER),
    **dict.fromkeys(("softmax",), _FLOAT),
    # Products, convolutions, images.
    **dict.fromkeys(
        ("matmul", "bias_add", "conv1d", "conv2d", "conv3d", "deconv1d", "deconv2d", "deconv3d", "avg_pool2d", "avg_pool3d",
         "max_pool2d",
         "upsample_nearest_2d", "upsample_bilinear_2d", "upsample_bicubic_2d"), _FLOAT),
    # Data that only moves, or is made.
    **dict.fromkeys(("reshape", "permute", "slice", "broadcast_to", "concat", "cast", "constant"), _MOVED),
    **dict.fromkeys(("flip", "tril", "triu", "dim_gather"), _ANY),
    "gather": _MOVED - {flow.uint8},
    "tensor_scatter_nd_update": _FLOAT | {flow.int64, flow.int32},
    "arange": _NUMBER,
}  # fmt: skip


# More dimensions end the process, or give wrong numbers. What is not listed takes 8.
_DIMENSIONS = {
    **dict.fromkeys(("where", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min"), 7),
    **dict.fromkeys(("reshape", "cast", "constant"), 12),
}


class _Checked:
    """The functions of ``oneflow._C`` that are known to work, as attributes."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = _checked(name, getattr(flow._C, name), _DTYPES[name], _DIMENSIONS.get(name, 8))
        setattr(self, name, function)
        return function


def _checked(name: str, function: Callable[..., flow.Tensor], dtypes: set[Any], dimensions: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, flow.Tensor):
                    check(tensor, dtypes)
        made = function(*args, **kwargs)
        check(made if isinstance(made, flow.Tensor) else made[0], _MOVED)
        return made

    def check(tensor: flow.Tensor, dtypes: set[Any]) -> None:
        if tensor.dtype not in dtypes:
            raise Refused(f"OneFlow's {name} has no CPU kernel for {str(tensor.dtype).removeprefix('oneflow.')}")
        if tensor.ndim > dimensions:
            raise Refused(f"{tensor.ndim} dimensions; OneFlow's {name} takes {dimensions}")
        if math.prod(tensor.shape) == 0:
            raise Refused("an empty tensor")

    return call


checked = _Checked()
