"""Attention in float32 on AMX against torch in float64."""

import ctypes
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from .math_library import Input, Output, available, f32, i64, ptr
from .test_math_product import products

pytestmark = pytest.mark.skipif("amx" not in available(), reason="this processor has no AMX")


class Call(ctypes.Structure):
    _fields_ = (
        ("q", ptr), ("k", ptr), ("v", ptr), ("mask", ptr), ("y", ptr),
        ("b", i64), ("m", i64), ("n", i64), ("heads", i64), ("d", i64),
        ("q_strides", i64 * 3), ("k_strides", i64 * 3), ("v_strides", i64 * 3), ("mask_strides", i64 * 4),
        ("causal", ctypes.c_bool), ("scale", f32),
    )  # fmt: skip


def run(q, k, v, mask=None, causal=False, scale=None):
    """q (b, m, heads, d), k and v (b, n, heads, d), mask broadcast to (b, heads, m, n) -> (b, m, heads, d), or None."""
    b, m, heads, d = q.shape
    n = k.shape[1]
    run = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Call))(products("amx").attention)
    inputs = [Input(t) for t in (q, k, v)]
    view = None if mask is None else mask.expand(b, heads, m, n)
    kept = None if mask is None else Input(mask.contiguous())
    y = Output(q.shape, torch.float32)
    strides = [(i64 * 3)(t.stride(0), t.stride(1), t.stride(2)) for t in (q, k, v)]
    call = Call(
        *(t.address for t in inputs), kept and kept.address, y.address, b, m, n, heads, d, *strides,
        (i64 * 4)(*(view.stride() if view is not None else ())), causal, 1 / math.sqrt(d) if scale is None else scale,
    )  # fmt: skip
    return y.take() if run(ctypes.byref(call)) else None


def check(q, k, v, mask=None, causal=False, scale=None):
    """At most 1.5 times torch's own error, or 1e-6 of the largest result."""

    def attend(*tensors):
        *qkv, mask = tensors
        if causal:  # torch's own flag wants no mask beside it
            seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril()
            mask = torch.zeros(seen.shape, dtype=qkv[0].dtype).masked_fill(~seen, -math.inf) + (0 if mask is None else mask)
        made = functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in qkv), attn_mask=mask, scale=scale)
        return made.transpose(1, 2)

    y = run(q, k, v, mask, causal, scale)
    by_torch, exact = attend(q, k, v, mask), attend(*(None if t is None else t.double() for t in (q, k, v, mask)))
    for measure in (lambda t: t.abs().max().item(), lambda t: t.square().mean().sqrt().item()):
        assert measure(y - exact) <= max(1.5 * measure(by_torch - exact), 1e-6 * measure(exact))
    return y


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 2, 16, 31, 32, 33, 77, 128, 130, 200]),
    st.sampled_from([1, 5, 32, 77, 96, 128, 129, 256, 300]), st.sampled_from([1, 8, 16, 17, 32, 40, 64, 80, 160, 300]),
    st.booleans(), st.sampled_from(["", "1111", "111n", "b11n", "1hmn", "bhmn", "11m1"]), st.sampled_from([1.0, -0.5, 2.0]),
    st.integers(0, 99),
)  # fmt: skip
def test_any_shape(b, heads, m, n, d, causal, mask, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, rows, heads, d, generator=generator) for rows in (m, n, n))
    sizes = {"b": b, "h": heads, "m": m, "n": n, "1": 1}
    added = torch.randn([sizes[s] for s in mask], generator=generator) if mask else None
    # Scores of about 1: the error of one large score, in which torch may be lucky, would be that of the whole row.
    check(q, k, v, added, causal, scale / d**0.5)


def test_keys_that_are_split_in_parts():
    """4096 pixels of 512 channels, as in a VAE; more keys than are split at a time, seen in full and causally."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4200, 1, 512) for _ in range(3))
    check(q[:, :260], k, v)
    check(q, k, v, causal=True)


def test_large_scores_and_hidden_rows():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 50, 2, 40) for _ in range(3))
    check(10 * q, 10 * k, v)
    mask = torch.zeros(1, 1, 50, 50)
    mask[..., 20:] = -math.inf
    check(q, k, v, mask)
    mask[..., 7, :] = -math.inf
    assert (run(q, k, v, mask)[:, 7] == 0).all()
    check(q, k, v, torch.full((1, 1, 50, 50), torch.finfo(torch.float32).min))


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_left_to_others(where, value):
    qkv = [torch.randn(1, 64, 2, 40) for _ in range(3)]
    qkv[where][0, 37, 1, 11] = value
    assert run(*qkv) is None
