"""Lowerings of padding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import ANY, FLOAT, shapes, tensors

amounts = st.integers(-1, 3)


@for_ops("pad", "constant_pad_nd")
@given(x=tensors(shapes(1).map(lambda s: tuple(d + 2 for d in s)), ANY), data=st.data())
def test_constant_padding(op, x, data):
    pad = data.draw(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=x.ndim))
    pad = [amount for pair in pad for amount in pair]
    value = (1,) if x.dtype == torch.bool else data.draw(st.sampled_from([(), (2,)]))
    check(op, x, pad, *(("constant", *value) if op == "aten.pad.default" else value))


@for_ops("pad")
@given(x=tensors([2, 3, 4, 5], FLOAT), mode=st.sampled_from(["reflect", "replicate", "circular"]), data=st.data())
def test_other_modes(op, x, mode, data):
    pad = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    check(op, x, pad, mode)
    check(op, x[0], pad[:2], mode)


@for_ops("pad")
def test_replicate_in_three_dimensions(op):
    check(op, torch.randn(1, 2, 3, 4, 5), [1, 2, 0, 1, 2, 0], "replicate")


@for_ops("pad", "constant_pad_nd")
def test_padding_with_infinity(op):
    check(op, torch.randn(2, 3), [1, 1], *(["constant"] if op == "aten.pad.default" else []), float("-inf"))


def test_what_is_refused():
    assert "empty" in refusal("aten.constant_pad_nd.default", torch.ones(2, 3), [-3, 0])
