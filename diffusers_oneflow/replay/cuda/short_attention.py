"""Attention to few keys, a prompt's, by Triton: one program has all keys of a head, and no loop over them.

The libraries' kernels are made for many keys: they take 10 microseconds for 1024 rows of 20 heads that attend to 77 tokens, of
which reading and writing is 3.
"""

import math

import torch

from ...passes.base import HALVES
from . import light
from .attention_kernel import short_attention_kernel

# Keys, and numbers of one head, that the registers of a program take.
MOST, WIDEST = 128, 128
# Rows and warps of a program.
CONFIGS = ((128, 8), (64, 4), (128, 4))
# Numbers of q below which all kernels take a few microseconds.
LEAST = 1 << 20
# The smallest side of what the tensor cores multiply.
_SIDE = 16


def fits(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, heads: int, causal: bool) -> bool:
    """Whether it computes this and may gain by it.

    Args:
        q, k, v: (n, rows, heads * width) and twice (n, keys, heads * width).
    """
    if mask is not None or causal or q.dtype not in HALVES or not q.dtype == k.dtype == v.dtype:
        return False
    alike = q.shape[::2] == k.shape[::2] and k.shape == v.shape and all(t.dim() == 3 and t.stride(2) == 1 for t in (q, k, v))
    return alike and 0 < k.shape[1] <= MOST and q.shape[2] // heads <= WIDEST and q.numel() >= LEAST


def attention(
    number: int, out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, scale: float | None
) -> None:
    """Fill `out` (n, rows, heads * width), dense, from q, k, v, which it `fits`.

    Args:
        number: of `CONFIGS`.
        scale: of the products of q and k; by default 1 over the root of the width.
    """
    (images, rows, columns), keys = q.shape, k.shape[1]
    width = columns // heads
    scale = width**-0.5 if scale is None else scale
    size, warps = CONFIGS[number]
    strides = [stride for t in (q, k, v, out) for stride in t.stride()[:2]]
    short_attention_kernel[(-(-rows // size), heads, images)](
        out, q, k, v, rows, keys, scale * math.log2(math.e), *strides, width, max(_SIDE, light.power(width)), size,
        *parts(keys), light.starts_early(q.device), num_warps=warps,
    )  # fmt: skip


def parts(keys: int) -> tuple[int, int]:
    """Two powers of two that hold so many keys; the second is the smaller one, and may be 0."""
    whole = max(_SIDE, light.power(keys))
    half = whole // 2
    rest = max(_SIDE, light.power(keys - half))
    return (half, rest) if half >= _SIDE and rest < half else (whole, 0)
