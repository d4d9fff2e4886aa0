"""Scaled dot product attention, from matrix products and softmax."""

import math

import torch

from ..errors import Unsupported
from .factory import filled
from .kernels import checked as _C
from .logic import where
from .matmul import product
from .registry import lowering
from .shape import reshaped
from .types import cast, torch_dtype


@lowering("aten.scaled_dot_product_attention.default")
def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """(..., heads, m, d) x (..., heads, n, d) -> (..., heads, m, dv).

    A bool mask is True where a key takes part; a row without any gives zeros, as in torch.
    """
    op = "aten.scaled_dot_product_attention.default"
    if dropout_p:
        raise Unsupported(op, "dropout; call .eval()")
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        raise Unsupported(op, "grouped queries (fewer key heads than query heads)")
    *lead, m, d = query.shape
    n = key.shape[-2]
    if list(key.shape[:-2]) != list(lead) or list(value.shape[:-2]) != list(lead):
        raise Unsupported(op, "query, key and value with different leading dimensions")
    scale = 1 / math.sqrt(d) if scale is None else scale
    heads = math.prod(lead)
    q, k, v = (reshaped(x, [heads, *x.shape[-2:]]) for x in (query, key, value))
    scores = product(q, k, transpose_b=True, alpha=float(scale))
    if is_causal:
        attn_mask = _C.tril(filled([m, n], 1, torch.int32), 0)
        attn_mask = cast(attn_mask, torch.bool)
    if attn_mask is None:
        weights = _C.softmax(scores, -1)
    else:
        scores = reshaped(scores, [*lead, m, n])
        weights = reshaped(_masked_softmax(scores, attn_mask), [heads, m, n])
    return reshaped(product(weights, v), [*lead, m, v.shape[-1]])


def _masked_softmax(scores, mask):
    """Softmax over the last dimension under a bool (keep) or additive mask."""
    if torch_dtype(mask) != torch.bool:
        return _C.softmax(_C.add(scores, cast(mask, torch_dtype(scores))), -1)
    # A finite fill keeps a row without any key free of NaN; the second where makes that row zeros.
    lowest = torch.finfo(torch_dtype(scores)).min
    weights = _C.softmax(where(mask, scores, lowest), -1)
    return where(mask, weights, 0.0)
