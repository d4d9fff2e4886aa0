"""Lowerings of normalisations."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import Weight, check, for_ops, refusal
from .strategies import FLOAT, shapes, tensors, weights

eps = st.sampled_from([1e-5, 1e-6, 1e-3])


@for_ops("group_norm")
@given(
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    space=shapes(1, 3),
    eps=eps,
    dtype=FLOAT,
    affine=st.booleans(),
    data=st.data(),
)
def test_group_norm(op, groups, per_group, space, eps, dtype, affine, data):
    channels = groups * per_group
    x = data.draw(tensors([2, channels, *space, 2], dtype))
    factors = [data.draw(weights([channels], dtype)) for _ in range(2)] if affine else [None, None]
    check(op, x, groups, *factors, eps)


@for_ops("layer_norm", "rms_norm")
@given(
    lead=shapes(0, 3),
    inner=shapes(1, 2).map(lambda s: [*s[:-1], s[-1] + 1]),
    eps=eps,
    dtype=FLOAT,
    affine=st.booleans(),
    data=st.data(),
)
def test_over_the_last_dimensions(op, lead, inner, eps, dtype, affine, data):
    x = data.draw(tensors([*lead, *inner], dtype))
    count = 1 if op == "aten.rms_norm.default" else 2
    factors = [data.draw(weights(inner, dtype)) if affine else None for _ in range(count)]
    check(op, x, inner, *factors, eps)
    check(op, x, inner)


@for_ops("group_norm", "layer_norm", "rms_norm")
def test_a_large_mean(op):
    """A variance computed as E[x^2] - E[x]^2 would lose everything here."""
    x = torch.randn(2, 8, 6, 16) + 10
    if op == "aten.group_norm.default":
        check(op, x, 4, Weight(torch.rand(8)), Weight(torch.rand(8)))
    else:
        check(op, x, [16], Weight(torch.rand(16)))


@for_ops("group_norm", "layer_norm", "rms_norm")
def test_many_elements(op):
    x = torch.randn(2, 32, 24, 24)
    check(op, x, *((8,) if op == "aten.group_norm.default" else ([24, 24],)))


@for_ops("group_norm", "layer_norm", "rms_norm")
def test_constant_rows(op):
    """Without any variance only eps keeps the result finite."""
    x = torch.full((2, 4, 6), 0.5)
    check(op, x, *((2,) if op == "aten.group_norm.default" else ([6],)))
    check(op, torch.zeros(2, 4, 6), *((2,) if op == "aten.group_norm.default" else ([6],)))


@for_ops("batch_norm")
@given(space=shapes(0, 3), dtype=FLOAT, affine=st.booleans(), data=st.data())
def test_batch_norm(op, space, dtype, affine, data):
    x = data.draw(tensors([2, 3, *space], dtype))
    factors = [data.draw(weights([3], dtype)) if affine else None for _ in range(2)]
    mean, variance = data.draw(weights([3], dtype)), Weight(data.draw(tensors([3], dtype, low=0.1)).contiguous())
    check(op, x, *factors, mean, variance, False, 0.1, 1e-5, True)


def test_what_is_refused():
    x = torch.randn(2, 3, 4)
    assert "batch statistics" in refusal("aten.batch_norm.default", x, None, None, None, None, True, 0.1, 1e-5, True)
    assert "no CPU kernel" in refusal("aten.layer_norm.default", x.half(), [4])
    assert "no CPU kernel" in refusal("aten.group_norm.default", x.bfloat16(), 3)
