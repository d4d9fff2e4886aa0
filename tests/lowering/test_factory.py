"""Lowerings of ops that make tensors from nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import Case, check, covered, for_ops, refusal, run
from .strategies import ANY, NUMBER, shapes, tensors

FILLS = {torch.bool: True, torch.float32: -2.5, torch.float64: 0.1}


def fill(dtype):
    return FILLS.get(dtype, 3)


@for_ops("full", "zeros", "ones")
@given(shape=shapes(), dtype=ANY)
def test_filled(op, shape, dtype):
    value = (fill(dtype),) if op == "aten.full.default" else ()
    check(op, list(shape), *value, dtype=dtype, device="cpu")
    check(op, list(shape), *value)


@for_ops("full")
@given(value=st.sampled_from([True, False, 7, 2**40, 0.1, float("inf"), float("-inf"), float("nan")]))
def test_full_infers_its_dtype(op, value):
    check(op, [2], value)


@for_ops("scalar_tensor")
@given(dtype=ANY)
def test_scalar_tensor(op, dtype):
    check(op, fill(dtype), dtype=dtype)
    check(op, 4)


@for_ops("full_like", "zeros_like", "ones_like")
@given(x=tensors(dtype=ANY), dtype=ANY)
def test_filled_like(op, x, dtype):
    like = op == "aten.full_like.default"
    check(op, x, *([fill(x.dtype)] if like else []))
    check(op, x, *([fill(dtype)] if like else []), dtype=dtype)


@for_ops("new_full", "new_zeros", "new_ones")
@given(x=tensors(dtype=ANY), shape=shapes(), dtype=ANY)
def test_new(op, x, shape, dtype):
    new = op == "aten.new_full.default"
    check(op, x, list(shape), *([fill(x.dtype)] if new else []))
    check(op, x, list(shape), *([fill(dtype)] if new else []), dtype=dtype)


covered.update(("aten.empty.memory_format", "aten.empty_like.default"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_empty_has_the_shape_and_dtype_and_is_zero(dtype):
    for case in (
        Case("aten.empty.memory_format", ([2, 3],), {"dtype": dtype}),
        Case("aten.empty_like.default", (torch.ones(2, 3, dtype=dtype),), {}),
    ):
        (result,) = run([case])[0]
        assert result.dtype == dtype and result.shape == (2, 3) and not result.any()


@for_ops("arange", "arange.start", "arange.start_step")
@given(
    start=st.integers(-5, 5),
    count=st.integers(1, 9),
    step=st.sampled_from([1, 2, -3]),
    dtype=NUMBER.filter(lambda t: t != torch.uint8),
)
def test_arange(op, start, count, step, dtype):
    arguments = {"default": (count,), "start": (start, start + count), "start_step": (start, start + step * count, step)}
    for options in ({}, {"dtype": dtype}):
        check(op, *arguments[op.split(".")[-1]], **options)


@for_ops("arange.start_step")
def test_arange_of_floats(op):
    check(op, 0.0, 1.0, 0.125)
    check(op, 0, 5.5, 1.5)


def test_what_is_refused():
    assert "complex64" in refusal("aten.zeros.default", [2], dtype=torch.complex64)
    assert "empty" in refusal("aten.zeros.default", [2, 0])
    assert "empty" in refusal("aten.arange.default", 0)
