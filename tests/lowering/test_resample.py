"""Lowerings of image resizing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import FLOAT, tensors

side = st.integers(1, 12)


@st.composite
def images(draw):
    return draw(
        tensors([draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))], FLOAT)
    )


@for_ops("upsample_nearest2d.vec")
@given(x=images(), height=side, width=side, factors=st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0])))
def test_nearest(op, x, height, width, factors):
    check(op, x, [height, width], None)
    check(op, x, None, list(factors))


@for_ops("upsample_bilinear2d.vec", "upsample_bicubic2d.vec")
@given(x=images(), height=side, width=side, align=st.booleans(), factor=st.sampled_from([1.0, 2.0, 3.0]))
def test_smooth(op, x, height, width, align, factor):
    check(op, x, [height, width], align, None)
    check(op, x, None, align, [factor, factor])


def test_what_is_refused():
    x = torch.randn(1, 2, 5, 5)
    assert "not whole" in refusal("aten.upsample_nearest2d.vec", x, None, [1.5, 1.5])
    assert "not whole" in refusal("aten.upsample_bilinear2d.vec", x, None, False, [1.5, 1.5])
    assert "no CPU kernel" in refusal("aten.upsample_nearest2d.vec", x.half(), [7, 7], None)
