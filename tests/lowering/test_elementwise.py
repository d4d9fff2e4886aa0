"""Lowerings of functions of one tensor, and of dtype conversion."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import Case, check, for_ops, refusal, run
from .strategies import ANY, BOOL, FLOAT, NUMBER, shapes, tensors


@for_ops("exp", "sin", "cos", "tanh", "sigmoid", "erf", "expm1", "atan")
@given(x=tensors(dtype=ANY))
def test_functions_of_any_number(op, x):
    check(op, x)


@for_ops("log", "sqrt", "rsqrt", "log1p", "reciprocal", "tan")
@given(x=tensors(dtype=ANY, low=0.01, high=1.5))
def test_functions_with_a_domain(op, x):
    check(op, x)


@for_ops("log", "sqrt", "rsqrt", "log1p", "reciprocal", "sigmoid", "exp",
       "tanh", "silu", "erf", "neg", "abs", "relu")  # fmt: skip
def test_values_at_the_edge(op):
    """Zeros of both signs, infinities and NaN give what they give in torch."""
    check(op, torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-38, 3e38, -100.0, 100.0]))


@for_ops("silu", "mish", "leaky_relu", "elu", "softplus", "gelu")
@given(x=tensors(dtype=FLOAT, low=-9, high=9))
def test_activations(op, x):
    check(op, x)


@for_ops("oneflow.quick_gelu.default")
@given(x=tensors(low=-9, high=9))
def test_quick_gelu(op, x):
    check(op, x)


@for_ops("relu", "neg", "abs", "square")
@given(x=tensors(dtype=NUMBER))
def test_functions_that_keep_integers(op, x):
    check(op, x)


@for_ops("floor", "ceil", "trunc", "round")
@given(x=tensors(dtype=NUMBER))
def test_rounding(op, x):
    check(op, x)


@for_ops("round")
def test_halves_round_to_even(op):
    check(op, torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e9 + 0.5]))


@for_ops("gelu")
@given(x=tensors(dtype=FLOAT, low=-9, high=9), approximate=st.sampled_from(["none", "tanh"]))
def test_gelu(op, x, approximate):
    check(op, x, approximate=approximate)


@for_ops("leaky_relu", "elu")
@given(x=tensors(dtype=FLOAT), slope=st.sampled_from([0.2, 0, 1, 2.0]))
def test_slope(op, x, slope):
    check(op, x, slope)


@for_ops("softplus")
@given(x=tensors(dtype=FLOAT, low=-30, high=30), beta=st.sampled_from([1, 2.5]), threshold=st.sampled_from([20, 3]))
def test_softplus(op, x, beta, threshold):
    check(op, x, beta, threshold)


@for_ops("logical_not")
@given(x=tensors(dtype=ANY))
def test_logical_not(op, x):
    check(op, x)


@for_ops("bitwise_not")
@given(x=tensors(dtype=BOOL))
def test_bitwise_not(op, x):
    check(op, x)


@for_ops("clamp", "hardtanh")
@given(x=tensors(dtype=NUMBER), low=st.sampled_from([-1, -0.5, 0]), high=st.sampled_from([1, 2.5]))
def test_clamp(op, x, low, high):
    if op == "aten.hardtanh.default":
        low, high = int(low), int(high)
    if x.dtype == torch.uint8:
        low = 0
    check(op, x, low, high)


@for_ops("clamp", "clamp_min", "clamp_max")
@given(x=tensors(dtype=NUMBER), bound=st.sampled_from([0, 1, 0.5]))
def test_clamp_on_one_side(op, x, bound):
    check(op, x, bound)


@for_ops("_to_copy", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as")
@given(x=tensors(dtype=ANY, low=0), dtype=ANY)
def test_conversion(op, x, dtype):
    positional = {"aten.to.dtype": (dtype,), "aten.to.device": (torch.device("cpu"), dtype)}
    if op in ("aten.to.other", "aten.type_as.default"):
        check(op, x, torch.ones(2, dtype=dtype))
    elif op in positional:
        check(op, x, *positional[op])
    else:
        check(op, x, dtype=dtype)


@for_ops("hardtanh")
def test_hardtanh_clamps_to_one_by_default(op):
    check(op, torch.linspace(-2, 2, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["aten.silu.default", "aten.exp.default", "aten.gelu.default", "aten.abs.default"])
def test_half_precision_is_refused(name, dtype):
    assert "no CPU kernel" in refusal(name, torch.ones(2, 3, dtype=dtype))


@for_ops("to.dtype")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted(op, dtype):
    check(op, torch.randn(2, 3, dtype=dtype), torch.float32)
    case = Case(op, (torch.randn(2, 3), dtype), {})
    results = run([case])[0]
    assert results[0].dtype == dtype and torch.equal(results[0], case.made)


def test_what_is_refused():
    assert "-1 is not within" in refusal("aten.clamp.default", torch.ones(2, dtype=torch.uint8), -1)
    assert "scale" in refusal("aten.elu.default", torch.ones(2), 1.0, 2.0)
    assert "bool" in refusal("aten.bitwise_not.default", torch.ones(2, dtype=torch.int64))
    assert "complex64" in refusal("aten.to.dtype", torch.ones(2), torch.complex64)
    assert "int16" in refusal("aten.to.dtype", torch.ones(2), torch.int16)


@for_ops("copy")
@given(x=tensors(shapes(1), ANY), dtype=ANY)
def test_copy_takes_shape_and_dtype_of_the_first(op, x, dtype):
    check(op, x, torch.ones(x.shape[-1], dtype=dtype))
