"""Lowering of scaled dot product attention."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import FLOAT, shapes, sizes, tensors

only = for_ops("scaled_dot_product_attention")


@st.composite
def attended(draw, lead=None, square=False):
    """query (..., m, d), key (..., n, d) and value (..., n, v)."""
    lead = draw(shapes(0, 2)) if lead is None else lead
    dtype, m, d = draw(FLOAT), draw(sizes), draw(sizes)
    n, v = (m, d) if square else (draw(sizes), draw(sizes))
    return [draw(tensors([*lead, rows, width], dtype)) for rows, width in ((m, d), (n, d), (n, v))]


@only
@given(qkv=attended(), scale=st.sampled_from([None, 0.5, 1.0]))
def test_plain(op, qkv, scale):
    check(op, *qkv, scale=scale)


@only
@given(qkv=attended([2, 3]), data=st.data())
def test_additive_mask(op, qkv, data):
    m, n = qkv[0].shape[-2], qkv[1].shape[-2]
    shape = data.draw(st.sampled_from([[m, n], [2, 1, 1, n], [2, 3, m, n], [1, 1, m, n]]))
    check(op, *qkv, data.draw(tensors(shape, st.just(qkv[0].dtype))))


@only
@given(qkv=attended([2, 3]), seed=st.integers(0, 99), shape=st.sampled_from(["mn", "b11n", "bhmn"]))
def test_bool_mask(op, qkv, seed, shape):
    m, n = qkv[0].shape[-2], qkv[1].shape[-2]
    size = {"mn": [m, n], "b11n": [2, 1, 1, n], "bhmn": [2, 3, m, n]}[shape]
    mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.6
    check(op, *qkv, mask)


@only
@given(qkv=attended(square=True))
def test_causal(op, qkv):
    check(op, *qkv, is_causal=True)


@only
@given(qkv=attended([2, 3]))
def test_causal_with_more_or_fewer_keys(op, qkv):
    check(op, *qkv, is_causal=True)


@only
@given(dtype=FLOAT, groups=st.integers(1, 3), kv_heads=st.integers(1, 2), m=sizes, n=sizes, data=st.data())
def test_grouped_queries(op, dtype, groups, kv_heads, m, n, data):
    q = data.draw(tensors([2, groups * kv_heads, m, 4], dtype))
    k, v = (data.draw(tensors([2, kv_heads, n, 4], dtype)) for _ in range(2))
    check(op, q, k, v, enable_gqa=True)


@only
@given(data=st.data(), where=st.sampled_from([0, 1, 2]))
def test_leading_dimensions_broadcast(op, data, where):
    qkv = [data.draw(tensors([1 if i == where else 2, 3, 4, 5])) for i in range(3)]
    check(op, *qkv)


@only
def test_large_scores_and_hidden_rows(op):
    """Scores beyond exp's range; a bool mask without any key gives zeros; -inf hides a key."""
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    check(op, 100 * q, k, v)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    check(op, q, k, v, mask)
    hidden = torch.zeros(6, 6)
    hidden[:, 3:] = float("-inf")
    check(op, q, k, v, hidden)


@only
def test_many_keys(op):
    check(op, *torch.randn(3, 1, 2, 300, 16))


def test_what_is_refused():
    op = "aten.scaled_dot_product_attention.default"
    q = torch.randn(1, 2, 3, 4)
    assert "dropout" in refusal(op, q, q, q, None, 0.5)
    assert "no CPU kernel" in refusal(op, q.half(), q.half(), q.half())
