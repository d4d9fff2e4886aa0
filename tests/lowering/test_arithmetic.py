"""Lowerings of arithmetic on two operands."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import ANY, FLOAT, NUMBER, operands, scalars, tensors


@for_ops("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum", "minimum")
@given(ab=operands(dtype=NUMBER))
def test_arithmetic(op, ab):
    check(op, *ab)


@for_ops("add.Tensor", "sub.Tensor", "rsub.Tensor")
@given(ab=operands(dtype=NUMBER), alpha=st.sampled_from([1, 2, -3]))
def test_alpha(op, ab, alpha):
    check(op, *ab, alpha=alpha)


@for_ops("add.Tensor", "sub.Tensor", "mul.Tensor")
def test_whole_numbers_wrap_around(op):
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.int64):
        limits = torch.iinfo(dtype)
        x = torch.tensor([limits.min, limits.max, 3], dtype=dtype)
        for y in (x, x.flip(0)):
            check(op, x, y)


@for_ops("add.Scalar", "sub.Scalar", "rsub.Scalar", "mul.Scalar", "div.Scalar", "add.Tensor", "sub.Tensor",
         "mul.Tensor", "div.Tensor")  # fmt: skip
@given(x=tensors(dtype=NUMBER), scalar=scalars.filter(lambda s: s is not True))
def test_arithmetic_with_a_scalar(op, x, scalar):
    check(op, x, scalar)


@for_ops("div.Tensor_mode", "div.Scalar_mode")
@given(data=st.data(), mode=st.sampled_from([None, "floor", "trunc"]))
def test_rounded_division(op, data, mode):
    a, b = data.draw(operands(dtype=FLOAT, low=0.3))
    check(op, a, b if op.endswith("Tensor_mode") else data.draw(st.sampled_from([2, 0.75, -3.5])), rounding_mode=mode)


@for_ops("pow.Tensor_Scalar")
@given(x=tensors(dtype=FLOAT, low=0.1), exponent=st.sampled_from([2, 0.5, 3, -1, 1.7, 0, 1, -0.5]))
def test_power(op, x, exponent):
    check(op, x, exponent)


@for_ops("pow.Tensor_Scalar")
@given(x=tensors(dtype=NUMBER), exponent=st.sampled_from([2, 3, 0, 1, 4]))
def test_whole_power_of_any_sign(op, x, exponent):
    check(op, x, exponent)


@for_ops("pow.Tensor_Tensor")
@given(ab=operands(dtype=FLOAT, low=0.1))
def test_power_of_tensors(op, ab):
    check(op, *ab)


@for_ops("pow.Scalar")
@given(base=st.sampled_from([10000, 2, 0.5, 1.0]), exponent=tensors(dtype=FLOAT, low=-1, high=1))
def test_power_of_a_scalar(op, base, exponent):
    check(op, base, exponent)
    check(op, -1, (3 * exponent).abs().long())


@for_ops("add.Tensor", "mul.Tensor", "maximum", "minimum")
@given(ab=operands(dtype=ANY))
def test_bool_arithmetic_is_logic(op, ab):
    check(op, *ab)


@for_ops("add.Tensor", "mul.Tensor")
def test_bool_with_a_bool_scalar(op):
    x = torch.tensor([True, False])
    check(op, x, True)
    check(op, x, False)


@for_ops("div.Scalar_mode", "floor_divide")
@given(x=tensors(dtype=NUMBER, low=-9, high=9), divisor=st.sampled_from([1, 2, 3, 7]))
def test_whole_number_division(op, x, divisor):
    check(op, x, divisor, **({"rounding_mode": "trunc"} if "mode" in op else {}))


@for_ops("pow.Tensor_Scalar")
def test_negative_base_and_zero(op):
    check(op, torch.tensor([-2.0, 0.0, 3.0]), 5)
    check(op, torch.tensor([-2.0, 0.0, 3.0]), -2)
    check(op, torch.tensor([-2.0, 0.0, 3.0]), 0.3)


@for_ops("div.Tensor")
def test_division_by_zero(op):
    check(op, torch.tensor([1.0, -1.0, 0.0]), torch.zeros(3))
    check(op, torch.tensor([1, -1, 0]), 0)


@for_ops("clamp.Tensor")
@given(ab=operands(dtype=NUMBER), both=st.booleans())
def test_clamp_between_tensors(op, ab, both):
    check(op, *ab)
    check(op, ab[0], None, ab[1])
    check(op, ab[0], ab[1], ab[1] + 1 if both else ab[1] - 1)
    check(op, ab[0], -torch.tensor(0.5), torch.tensor(0.5))


@for_ops("maximum", "minimum")
def test_nan_wins(op):
    nan = float("nan")
    check(op, torch.tensor([nan, 1.0, nan, 2.0]), torch.tensor([nan, nan, 1.0, 3.0]))


def test_what_is_refused():
    ints = torch.tensor([4, 9])
    assert "whole-number division" in refusal("aten.div.Tensor_mode", ints, ints, rounding_mode="floor")
    assert "pow" in refusal("aten.pow.Tensor_Tensor", ints, ints)
    assert "pow" in refusal("aten.pow.Tensor_Scalar", ints, 5)
    assert "no CPU kernel" in refusal("aten.add.Tensor", torch.ones(2, dtype=torch.float16), 1)
    assert "empty" in refusal("aten.mul.Tensor", torch.ones(2, 1), torch.ones(1, 0)[:, :0])
