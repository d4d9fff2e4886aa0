"""Lowerings of reductions, softmax and scans."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import ANY, BOOL, FLOAT, NUMBER, shapes, tensors

INF, NAN = float("inf"), float("nan")
# Terms of one sign: where they cancel, the rounding of the sum's order is all that is left.
POSITIVE = {"low": 0, "high": 6}


def some_dims(draw, x, low=0):
    """Some of the dimensions of `x`, counted from either end."""
    picked = draw(st.lists(st.integers(0, x.ndim - 1), min_size=low, max_size=x.ndim, unique=True)) if x.ndim else []
    return [d - x.ndim if draw(st.booleans()) else d for d in picked]


@for_ops("sum.dim_IntList", "mean.dim", "amax", "amin")
@given(x=tensors(shapes(0, 6), ANY, **POSITIVE), keepdim=st.booleans(), data=st.data())
def test_over_dimensions(op, x, keepdim, data):
    if op == "aten.mean.dim" and not x.dtype.is_floating_point:
        x = x.float()
    check(op, x, some_dims(data.draw, x), keepdim)


@for_ops("sum.dim_IntList", "mean.dim")
@given(x=tensors(dtype=ANY, **POSITIVE), dtype=FLOAT, data=st.data())
def test_in_another_dtype(op, x, dtype, data):
    check(op, x, some_dims(data.draw, x), dtype=dtype)
    if op == "aten.sum.dim_IntList":
        check(op, x, None)


@for_ops("sum", "mean", "amax", "amin")
@given(x=tensors(dtype=FLOAT, **POSITIVE))
def test_over_everything(op, x):
    check(op, x)


@for_ops("sum")
@given(x=tensors(dtype=ANY, **POSITIVE))
def test_sum_of_integers(op, x):
    check(op, x)
    check(op, x, dtype=torch.float32)
    check(op, x, dtype=torch.int64)
    check(op, x, dtype=torch.int32)


@for_ops("sum", "mean")
def test_long_sums(op):
    check(op, torch.rand(200_000))
    check(op, torch.rand(64, 4000) + 100)


@for_ops("any", "all")
@given(x=tensors(dtype=ANY, low=0, high=2))
def test_truth(op, x):
    check(op, x)


@for_ops("any.dim", "all.dim")
@given(x=tensors(shapes(1), BOOL), keepdim=st.booleans(), data=st.data())
def test_truth_over_a_dimension(op, x, keepdim, data):
    check(op, x, data.draw(st.integers(-x.ndim, x.ndim - 1)), keepdim)


@for_ops("var.correction")
@given(
    x=tensors(shapes(1).map(lambda s: tuple(d + 1 for d in s)), FLOAT),
    correction=st.sampled_from([None, 0, 1]),
    keepdim=st.booleans(),
    data=st.data(),
)
def test_variance(op, x, correction, keepdim, data):
    check(op, x, some_dims(data.draw, x, low=1), correction=correction, keepdim=keepdim)
    check(op, x)


@for_ops("var.correction")
def test_variance_of_values_far_from_zero(op):
    check(op, torch.randn(4, 500) * 0.1 + 50, [1])


@for_ops("argmax", "argmin")
@given(x=tensors(dtype=NUMBER), keepdim=st.booleans(), data=st.data())
def test_index_of_the_extreme(op, x, keepdim, data):
    """Of equal values torch may take any: this counts on the first, as torch on CPU does."""
    check(op, x, None, keepdim)
    if x.ndim:
        check(op, x, data.draw(st.integers(-x.ndim, x.ndim - 1)), keepdim)


@for_ops("cumsum")
@given(x=tensors(dtype=ANY, **POSITIVE), dtype=st.sampled_from([None, torch.float32, torch.int64, torch.int32]), data=st.data())
def test_cumsum(op, x, dtype, data):
    check(op, x, data.draw(st.integers(-x.ndim, x.ndim - 1)) if x.ndim else 0, dtype=dtype)


@for_ops("softmax.int", "log_softmax.int")
@given(x=tensors(dtype=FLOAT, low=-20, high=20), dtype=st.sampled_from([None, torch.float32, torch.float64]), data=st.data())
def test_softmax(op, x, dtype, data):
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1)) if x.ndim else 0
    check(op, x, dim)
    check(op, x, dim, dtype)


@for_ops("softmax.int")
@given(x=tensors(shapes(1), ANY))
def test_softmax_of_integers_in_float(op, x):
    check(op, x, -1, torch.float32)


@for_ops("_softmax", "_log_softmax")
@given(x=tensors(dtype=FLOAT, low=-20, high=20), data=st.data())
def test_decomposed_softmax(op, x, data):
    check(op, x, data.draw(st.integers(-x.ndim, x.ndim - 1)) if x.ndim else 0, False)


@for_ops("softmax.int", "log_softmax.int")
def test_softmax_beyond_the_range_of_exp(op):
    check(op, torch.tensor([[1e4, 0.0, -1e4], [88.0, 89.0, 90.0]]), 1)
    check(op, torch.tensor([[0.0, -INF, 1.0], [-INF, -INF, 5.0]]), 1)
    check(op, torch.randn(3, 1000), 1)


@for_ops("linalg_vector_norm")
@given(x=tensors(dtype=FLOAT), keepdim=st.booleans(), data=st.data())
def test_vector_norm(op, x, keepdim, data):
    check(op, x, 2, some_dims(data.draw, x) or None, keepdim)
    check(op, x)


@for_ops("amax", "amin")
@given(x=tensors(shapes(1), ANY))
def test_extremes_of_both_signs(op, x):
    check(op, x, [0], True)


@for_ops("amax", "amin", "sum.dim_IntList", "mean.dim")
def test_infinity_and_nan(op):
    check(op, torch.tensor([[1.0, NAN, INF], [INF, 2.0, 3.0], [-INF, 1.0, 0.0]]), [1])


@pytest.mark.parametrize("name", ["sum.dim_IntList", "mean.dim", "softmax.int", "cumsum.default"])
def test_half_precision_is_refused(name):
    dim = [0] if name in ("sum.dim_IntList", "mean.dim") else 0
    assert "no CPU kernel" in refusal(f"aten.{name}", torch.ones(2, dtype=torch.bfloat16), dim)


def test_what_is_refused():
    assert "2-norm" in refusal("aten.linalg_vector_norm.default", torch.ones(2), 1)
    assert "freedom" in refusal("aten.var.correction", torch.ones(1, 3), [0])
