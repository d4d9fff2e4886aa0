"""Lowerings of linear layers and matrix products."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import FLOAT, shapes, sizes, tensors, weights


@for_ops("linear")
@given(lead=shapes(0, 3), n=sizes, k=sizes, dtype=FLOAT, bias=st.booleans(), data=st.data())
def test_linear(op, lead, n, k, dtype, bias, data):
    x = data.draw(tensors([*lead, k], dtype))
    check(op, x, data.draw(weights([n, k], dtype)), data.draw(weights([n], dtype)) if bias else None)
    check(op, x, data.draw(tensors([n, k], dtype)))


@for_ops("linear", "mm", "matmul")
def test_long_sums(op):
    """Many terms of one sign: an accumulation in one float32 would drift."""
    a, b = torch.rand(3, 4096), torch.rand(5, 4096)
    check(op, a, b if op == "aten.linear.default" else b.t())


@for_ops("mm")
@given(m=sizes, n=sizes, k=sizes, dtype=FLOAT, data=st.data())
def test_mm(op, m, n, k, dtype, data):
    check(op, data.draw(tensors([m, k], dtype)), data.draw(tensors([k, n], dtype)))


@for_ops("bmm")
@given(b=sizes, m=sizes, n=sizes, k=sizes, dtype=FLOAT, data=st.data())
def test_bmm(op, b, m, n, k, dtype, data):
    check(op, data.draw(tensors([b, m, k], dtype)), data.draw(tensors([b, k, n], dtype)))


@for_ops("addmm", "baddbmm")
@given(
    m=sizes, n=sizes, k=sizes, dtype=FLOAT, factors=st.sampled_from([{}, {"beta": 0.5, "alpha": 2}, {"beta": 0}]), data=st.data()
)
def test_added_product(op, m, n, k, dtype, factors, data):
    batch = [3] if op == "aten.baddbmm.default" else []
    added = data.draw(tensors(data.draw(st.sampled_from([[m, n], [n], [1, n], [m, 1]])) if not batch else [3, m, n], dtype))
    check(op, added, data.draw(tensors([*batch, m, k], dtype)), data.draw(tensors([*batch, k, n], dtype)), **factors)


@for_ops("matmul")
@given(a=shapes(0, 3), b=shapes(0, 3), m=sizes, n=sizes, k=sizes, dtype=FLOAT, data=st.data())
def test_matmul_broadcasts(op, a, b, m, n, k, dtype, data):
    shape = data.draw(shapes(0, 3))
    a = [s if data.draw(st.booleans()) else 1 for s in shape]
    b = [s if data.draw(st.booleans()) else 1 for s in shape[data.draw(st.integers(0, len(shape))) :]]
    check(op, data.draw(tensors([*a, m, k], dtype)), data.draw(tensors([*b, k, n], dtype)))
    check(op, data.draw(tensors([*b, m, k], dtype)), data.draw(tensors([*a, k, n], dtype)))


@for_ops("matmul")
@given(lead=shapes(0, 3), m=sizes, k=sizes, dtype=FLOAT, data=st.data())
def test_matmul_with_vectors(op, lead, m, k, dtype, data):
    vector, matrices = data.draw(tensors([k], dtype)), data.draw(tensors([*lead, m, k], dtype))
    check(op, vector, data.draw(tensors([k], dtype)))
    check(op, matrices, vector)
    check(op, vector, matrices.mT)


def test_what_is_refused():
    ints = torch.ones(2, 2, dtype=torch.int64)
    assert "no CPU kernel" in refusal("aten.mm.default", ints, ints)
    half = torch.ones(2, 2, dtype=torch.bfloat16)
    assert "no CPU kernel" in refusal("aten.linear.default", half, half)
