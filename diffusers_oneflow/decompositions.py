"""What some ops are made of, where torch.export's own answer rounds more often than torch's kernels do, or there is none."""

from collections.abc import Callable
from typing import Any

import torch


def batch_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What batch norm is in eval mode: torch.export does not keep an op that may write to its buffers.

    Returns:
        input (n, channels, ...) normalised by the running statistics (channels,), and two empty tensors, as the op gives.
    """
    shape = [1, -1] + [1] * (input.ndim - 2)
    scale = torch.rsqrt(_wide(variance) + eps)
    scale = scale if weight is None else scale * _wide(weight)
    out = (_wide(input) - _wide(mean).reshape(shape)) * scale.reshape(shape)
    out = out if bias is None else out + _wide(bias).reshape(shape)
    return out.to(input.dtype), mean.new_empty(0), mean.new_empty(0)


def weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """``v * g / |v|`` and ``|v|`` in float32, over all dimensions but `dim`; the first is rounded once, as by torch's kernels.

    Torch's decomposition rounds the norm and the quotient too: 1.3 times the error of the encoder of Stable Audio's VAE in
    bfloat16.
    """
    others = [d for d in range(v.ndim) if d != dim]  # none are all to vector_norm
    norm = torch.linalg.vector_norm(v, 2, others, keepdim=True, dtype=_wide(v).dtype) if others else _wide(v).abs()
    made = (_wide(v) * (_wide(g) / norm)).to(v.dtype)
    return made, norm


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In the dtype in which torch's kernels compute."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


TABLE: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._native_batch_norm_legit_no_training.default: batch_norm,
    torch.ops.aten._weight_norm_interface.default: weight_norm,
}
