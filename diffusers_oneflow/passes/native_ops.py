"""The ops that the pack has and ATen has not: what the passes put into a program, as torch computes them.

A node's target is one of these; its lowering is in `kernels.lowering`. Called, they compute in torch: that is what the
passes are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .base import HALVES, custom_op

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def _dense(x: torch.Tensor) -> torch.Tensor:
    """`x` as torch's kernels for the CPU want it: those for channels last add up in another order, and lose a digit."""
    return x.contiguous() if x.device.type == "cpu" else x


@custom_op("oneflow.conv2d.default")
def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``act(conv(x) + residual)`` on channels-last images: x (n, h, w, c) -> (n, oh, ow, oc); weight (oc, c / groups, kh, kw).

    A filter of videos (oc, c', kt, kh, kw) is taken for one of images with c' * kt = c / groups.
    """
    weight = weight.flatten(1, -3)
    made = F.conv2d(_dense(x.permute(0, 3, 1, 2)), weight, bias, stride, padding, dilation, groups).permute(0, 2, 3, 1)
    return ACTIVATIONS[act](made if residual is None else made + residual)


@custom_op("oneflow.linear.default")
def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    act: str = "none",
    residual: torch.Tensor | None = None,
    gate: str = "none",
) -> torch.Tensor:
    """``act(x @ weight.T + bias) + residual``; with a gate, the first half of the columns times ``gate(second half)``."""
    made = ACTIVATIONS[act](F.linear(x, weight, bias))
    made = made if residual is None else made + residual
    return made if gate == "none" else gated(made, gate)


@custom_op("oneflow.gated.default")
def gated(x: torch.Tensor, act: str, gate_first: bool = False) -> torch.Tensor:
    """x (..., 2 c) -> (..., c): the first half times ``act`` of the second; the other way round with `gate_first`."""
    a, b = x.chunk(2, -1)
    return ACTIVATIONS[act](a) * b if gate_first else a * ACTIVATIONS[act](b)


@custom_op("oneflow.group_norm.default")
def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    act: str = "none",
    channels_last: bool = True,
) -> torch.Tensor:
    """Group norm and an activation; the channels are x's last dimension, or its second."""
    moved = x.movedim(-1, 1) if channels_last else x
    made = ACTIVATIONS[act](F.group_norm(_dense(moved), groups, weight, bias, eps))
    return made.movedim(1, -1) if channels_last else made


@custom_op("oneflow.upsample_nearest2d.default")
def upsample_nearest2d(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """x (n, h, w, c) -> (n, *size, c)."""
    return F.interpolate(x.permute(0, 3, 1, 2), size=list(size), mode="nearest").permute(0, 2, 3, 1)


@custom_op("oneflow.attention.default")
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, heads: int, causal: bool, scale: float | None
) -> torch.Tensor:
    """q (b, m, heads * d), k and v (b, n, heads * d) -> (b, m, heads * d); mask broadcasts to (b, heads, m, n)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    made = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return made.transpose(1, 2).flatten(2)


@custom_op("oneflow.additive_mask.default")
def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a bool mask lets a key take part, -inf where not."""
    return torch.log(mask.to(torch.float32)).to(dtype)


_CODES: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum, "min": torch.minimum,
    "add_scalar": lambda a, v: a + v, "mul_scalar": lambda a, v: a * v, "rsub_scalar": lambda a, v: v - a,
    "rdiv_scalar": lambda a, v: v / a, "max_scalar": lambda a, v: a.clamp(min=v), "min_scalar": lambda a, v: a.clamp(max=v),
    "pow_scalar": torch.pow, "act": lambda a, name: ACTIVATIONS[name](a), "exp": torch.exp, "log": torch.log,
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "sin": torch.sin, "cos": torch.cos, "neg": torch.neg, "abs": torch.abs,
    "square": torch.square, "erf": torch.erf,
}  # fmt: skip
# In the order of math.h's Code.
CODES = (
    "add", "sub", "mul", "div", "max", "min", "add_scalar", "mul_scalar", "rsub_scalar", "rdiv_scalar", "max_scalar",
    "min_scalar", "pow_scalar", "act", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "neg", "abs", "square", "erf",
)  # fmt: skip


@custom_op("oneflow.chain.default")
def chain(
    operands: Sequence[torch.Tensor], instructions: Sequence[tuple[str, int, int, Any]], dtype: torch.dtype
) -> torch.Tensor:
    """Instructions ``(code, a, b, value)`` on operands that broadcast; values are numbered operands first.

    Half types are computed in float32 and rounded once, as by the kernels: the casts that the program had are not among the
    instructions.
    """
    values = [x.to(torch.float32) if x.dtype in HALVES else x for x in operands]
    for code, a, b, constant in instructions:
        if code in ("add", "sub", "mul", "div", "max", "min"):
            values.append(_CODES[code](values[a], values[b]))
        elif code.endswith("_scalar") or code == "act":
            values.append(_CODES[code](values[a], constant))
        else:
            values.append(_CODES[code](values[a]))
    return values[-1].to(dtype)
