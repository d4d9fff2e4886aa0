"""Scaled dot product attention, from matrix products and softmax."""

from __future__ import annotations

import math

import oneflow as flow
import torch

from .factory import filled
from .kernels import checked as _C
from .logic import where
from .matmul import product
from .registry import Refused, lowering
from .shape import expand, narrow, repeat_interleave, reshaped
from .types import cast, torch_dtype

# Bytes of scores at a time. OneFlow has no attention kernel for the CPU, and the scores of a whole image are
# larger than everything else a UNet keeps: 1 GB at 64x64 latents. Softmax needs them twice.
_SCORES = 2**26


@lowering("aten.scaled_dot_product_attention.default")
def scaled_dot_product_attention(
    query: flow.Tensor,
    key: flow.Tensor,
    value: flow.Tensor,
    attn_mask: flow.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> flow.Tensor:
    """(..., heads, m, d) x (..., heads, n, d) -> (..., heads, m, dv).

    A bool mask is True where a key takes part; a row without any gives zeros, as in torch.
    """
    if dropout_p:
        raise Refused("dropout; call .eval()")
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        key, value = (repeat_interleave(x, query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    lead = list(torch.broadcast_shapes(*(tuple(x.shape[:-2]) for x in (query, key, value))))
    query, key, value = (expand(x, [*lead, *x.shape[-2:]]) for x in (query, key, value))
    m, d = query.shape[-2:]
    n = key.shape[-2]
    scale = 1 / math.sqrt(d) if scale is None else scale
    heads = math.prod(lead)
    q, k, v = (reshaped(x, [heads, *x.shape[-2:]]) for x in (query, key, value))
    if is_causal:
        attn_mask = _C.tril(filled([m, n], 1, torch.int32), 0)
        attn_mask = cast(attn_mask, torch.bool)

    def attend(start: int, rows: int) -> flow.Tensor:
        """The result of the queries start ... start + rows - 1: (heads, rows, dv)."""
        part, mask = q, attn_mask
        if rows < m:
            part = narrow(q, 1, start, rows)
            mask = narrow(mask, mask.ndim - 2, start, rows) if mask is not None and mask.shape[-2] == m else mask
        scores = product(part, k, transpose_b=True, alpha=float(scale))
        if mask is None:
            weights = _C.softmax(scores, -1)
        else:
            weights = reshaped(_masked_softmax(reshaped(scores, [*lead, rows, n]), mask), [heads, rows, n])
        return product(weights, v)

    rows = max(1, min(m, _SCORES // max(1, heads * n * query.element_size())))
    parts = [attend(start, min(rows, m - start)) for start in range(0, m, rows)]
    return reshaped(parts[0] if len(parts) == 1 else _C.concat(parts, 1), [*lead, m, v.shape[-1]])


def _masked_softmax(scores: flow.Tensor, mask: flow.Tensor) -> flow.Tensor:
    """Softmax over the last dimension under a bool (keep) or additive mask."""
    if torch_dtype(mask) != torch.bool:
        return _C.softmax(_C.add(scores, cast(mask, torch_dtype(scores))), -1)
    # A finite fill keeps a row without any key free of NaN; the second where makes that row zeros.
    lowest = torch.finfo(torch_dtype(scores)).min
    weights = _C.softmax(where(mask, scores, lowest), -1)
    return where(mask, weights, 0.0)
