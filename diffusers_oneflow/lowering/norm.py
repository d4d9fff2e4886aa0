"""Normalisations, from means and products: OneFlow's own layer_norm has no CPU kernel (it aborts)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import oneflow as flow
import torch

from .arithmetic import add, mul
from .kernels import checked as _C
from .registry import Refused, lowering
from .shape import reshaped
from .types import torch_dtype

# Longer rows are averaged in two steps.
_LONG = 4096


def _mean(rows: flow.Tensor) -> flow.Tensor:
    """The mean of each row: (n, k) -> (n, 1).

    OneFlow adds the numbers of a row up one by one, an error that grows with their count; PyTorch adds up halves.
    """
    n, k = rows.shape
    part = next(d for d in range(math.isqrt(k), 0, -1) if k % d == 0)
    if k < _LONG or part == 1:
        return _C.reduce_mean(rows, [1], True)
    return _C.reduce_mean(_C.reduce_mean(reshaped(rows, [n, k // part, part]), [2], False), [1], True)


def _centred(rows: flow.Tensor, eps: float) -> tuple[flow.Tensor, flow.Tensor]:
    """Each row of a (n, k) tensor with mean 0, and the inverse (n, 1) of its standard deviation (biased, with `eps`)."""
    centred = _C.sub(rows, _mean(rows))
    variance = _mean(_C.mul(centred, centred))
    return centred, _C.rsqrt(_C.add(variance, eps))


def _per_channel(x: flow.Tensor, weight: flow.Tensor | None, bias: flow.Tensor | None) -> flow.Tensor:
    """``x * weight + bias`` along dimension 1."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    if weight is not None:
        x = _C.mul(x, reshaped(weight, shape))
    return x if bias is None else _C.add(x, reshaped(bias, shape))


@lowering("aten.group_norm.default")
def group_norm(
    input: flow.Tensor,
    num_groups: int,
    weight: flow.Tensor | None = None,
    bias: flow.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: object = True,
) -> flow.Tensor:
    n, c = input.shape[:2]
    centred, scale = _centred(reshaped(input, [n * num_groups, -1]), eps)
    if weight is None:
        return _per_channel(reshaped(_C.mul(centred, scale), input.shape), None, bias)
    # One factor per channel first: the image is rounded, and walked through, once less.
    scale = _C.mul(reshaped(scale, [n, num_groups, 1]), reshaped(weight, [1, num_groups, c // num_groups]))
    scale = reshaped(scale, [n, c] + [1] * (input.ndim - 2))
    return _per_channel(_C.mul(reshaped(centred, input.shape), scale), None, bias)


@lowering("aten.layer_norm.default")
def layer_norm(
    input: flow.Tensor,
    normalized_shape: Sequence[int],
    weight: flow.Tensor | None = None,
    bias: flow.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: object = True,
) -> flow.Tensor:
    axis = input.ndim - len(normalized_shape)
    rows = reshaped(input, [math.prod(input.shape[:axis]), -1])
    out = reshaped(_C.mul(*_centred(rows, eps)), input.shape)
    if weight is not None:
        out = _C.mul(out, weight)
    return out if bias is None else _C.add(out, bias)


@lowering("aten.rms_norm.default")
def rms_norm(
    input: flow.Tensor, normalized_shape: Sequence[int], weight: flow.Tensor | None = None, eps: float | None = None
) -> flow.Tensor:
    if eps is None:
        eps = torch.finfo(torch_dtype(input)).eps
    dims = list(range(input.ndim - len(normalized_shape), input.ndim))
    square = _C.reduce_mean(_C.mul(input, input), dims, True)
    out = _C.mul(input, _C.rsqrt(_C.add(square, eps)))
    return out if weight is None else _C.mul(out, weight)


@lowering("aten.batch_norm.default")
def batch_norm(
    input: flow.Tensor,
    weight: flow.Tensor | None,
    bias: flow.Tensor | None,
    running_mean: flow.Tensor | None,
    running_var: flow.Tensor,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: object,
) -> flow.Tensor:

    if training or running_mean is None:
        raise Refused("batch statistics; call .eval()")
    shape = [1, -1] + [1] * (input.ndim - 2)
    scale = _C.rsqrt(add(running_var, eps))
    centred = _C.sub(input, reshaped(running_mean, shape))
    return _per_channel(mul(centred, reshaped(scale, shape)), weight, bias)
