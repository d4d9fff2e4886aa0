"""Lowerings of comparison, logic and selection."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import ANY, ANY_SHAPE, BOOL, operands, scalars, tensors

NAN = float("nan")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")


@for_ops(*(f"{c}.Tensor" for c in COMPARE))
@given(ab=operands(low=-2, high=2))
def test_comparison(op, ab):
    check(op, *ab)


@for_ops(*(f"{c}.Scalar" for c in COMPARE))
@given(x=tensors(dtype=ANY, low=-2, high=2), scalar=scalars)
def test_comparison_with_a_scalar(op, x, scalar):
    check(op, x, abs(scalar) if x.dtype == torch.uint8 else scalar)


@for_ops("logical_and", "logical_or", "logical_xor")
@given(ab=operands())
def test_logic(op, ab):
    check(op, *ab)


@for_ops("isinf")
@given(x=tensors(dtype=ANY))
def test_infinities(op, x):
    check(op, x)
    if x.dtype.is_floating_point and x.numel() > 1:
        check(op, x.where(x > 0, torch.inf))
        check(op, x.where(x > 0, -torch.inf).where(x != x.max(), NAN))


@for_ops("bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor")
@given(ab=operands(dtype=BOOL))
def test_bitwise_logic(op, ab):
    check(op, *ab)


@for_ops("where.self")
@given(condition=tensors(ANY_SHAPE, BOOL), data=st.data())
def test_where(op, condition, data):
    kept = [s if data.draw(st.booleans()) else 1 for s in condition.shape]
    check(op, condition, data.draw(tensors(kept, ANY)), data.draw(tensors(condition.shape, ANY)))


@for_ops("where.ScalarSelf", "where.ScalarOther", "where.Scalar")
@given(condition=tensors(dtype=BOOL), pair=st.tuples(scalars, scalars), data=st.data())
def test_where_with_scalars(op, condition, pair, data):
    a, b = pair
    if op == "aten.where.ScalarSelf":
        b = data.draw(tensors(condition.shape, ANY))
    elif op == "aten.where.ScalarOther":
        a = data.draw(tensors(condition.shape, ANY))
    check(op, condition, a, b)


@for_ops("masked_fill.Scalar", "masked_fill.Tensor")
@given(x=tensors(dtype=ANY), data=st.data(), value=st.sampled_from([0, 1, 2, -1.5, float("-inf"), True]))
def test_masked_fill(op, x, data, value):
    if not x.dtype.is_floating_point:
        value = 1
    mask = data.draw(tensors([s if data.draw(st.booleans()) else 1 for s in x.shape], BOOL))
    check(op, x, mask, torch.tensor(value) if op.endswith("Tensor") else value)


@pytest.mark.parametrize("name", ["lt.Scalar", "ge.Scalar", "eq.Scalar"])
def test_scalars_beyond_the_dtype_are_refused(name):
    """torch wraps some of them around."""
    assert "-1 is not within" in refusal(f"aten.{name}", torch.tensor([0, 100, 255], dtype=torch.uint8), -1)
    assert "300 is not within" in refusal(f"aten.{name}", torch.tensor([0, 100], dtype=torch.int8), 300)


@for_ops("masked_fill.Scalar")
def test_mask_that_is_larger_than_the_tensor(op):
    check(op, torch.ones(3), torch.tensor([[True], [False]]), 2.5)


@for_ops(*(f"{c}.Tensor" for c in COMPARE), *(f"{c}.Scalar" for c in COMPARE))
def test_nan_infinity_and_signed_zero(op):
    values = torch.tensor([NAN, 1.0, float("inf"), -0.0, NAN])
    if op.endswith("Scalar"):
        check(op, values, 0.0)
        check(op, values, float("inf"))
    else:
        check(op, values, torch.tensor([NAN, NAN, float("inf"), 0.0, 1.0]))


def test_what_is_refused():
    ints = torch.tensor([4, 9])
    assert "bool" in refusal("aten.bitwise_and.Tensor", ints, ints)
    half = torch.ones(2, dtype=torch.bfloat16)
    assert "no CPU kernel" in refusal("aten.lt.Scalar", half, 0.5)
    assert "no CPU kernel" in refusal("aten.where.self", ints > 5, half, half)
