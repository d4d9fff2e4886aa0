"""Lowerings that move, join or cut data."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import Case, check, for_ops, refusal, run
from .strategies import ANY, NUMBER, shapes, tensors


def dims(x: torch.Tensor):
    """A dimension of `x`, counted from either end."""
    return st.integers(-x.ndim, x.ndim - 1)


@for_ops("view", "reshape", "_unsafe_view")
@given(x=tensors(dtype=ANY), data=st.data())
def test_reshape(op, x, data):
    if op != "aten.reshape.default":
        x = x.contiguous()
    check(op, x, [-1])
    factors = data.draw(st.permutations([*x.shape, 1]))
    if factors and data.draw(st.booleans()):
        factors[0] = -1
    check(op, x, factors)


@for_ops("flatten.using_ints")
@given(x=tensors(dtype=ANY), data=st.data())
def test_flatten(op, x, data):
    check(op, x)
    if x.ndim:
        start, end = sorted(data.draw(st.tuples(dims(x), dims(x))), key=lambda d: d % x.ndim)
        check(op, x, start, end)


@for_ops("unflatten.int")
@given(x=tensors([2, 12, 3], ANY), sizes=st.sampled_from([[3, 4], [-1, 2], [2, -1, 3], [12]]), dim=st.sampled_from([1, -2]))
def test_unflatten(op, x, sizes, dim):
    check(op, x, dim, sizes)


@for_ops("unsqueeze")
@given(x=tensors(dtype=ANY), data=st.data())
def test_unsqueeze(op, x, data):
    check(op, x, data.draw(st.integers(-x.ndim - 1, x.ndim)))


@for_ops("squeeze", "squeeze.dim", "squeeze.dims")
@given(x=tensors(st.lists(st.sampled_from([1, 1, 2, 3]), max_size=4), ANY), data=st.data())
def test_squeeze(op, x, data):
    if op == "aten.squeeze.default":
        check(op, x)
    elif x.ndim:
        dim = data.draw(dims(x))
        check(op, x, dim if op == "aten.squeeze.dim" else sorted({dim % x.ndim, 0}))
    else:
        check(op, x, 0 if op == "aten.squeeze.dim" else [])


@for_ops("permute")
@given(x=tensors(shapes(0, 6), ANY), data=st.data())
def test_permute(op, x, data):
    order = data.draw(st.permutations(range(x.ndim)))
    check(op, x, [d - x.ndim if data.draw(st.booleans()) else d for d in order])


@for_ops("permute")
def test_permute_of_eight_dimensions(op):
    """Wan's unpatchify."""
    check(op, torch.randn(1, 2, 3, 2, 1, 2, 2, 3), [0, 7, 1, 4, 2, 5, 3, 6])


@for_ops("transpose.int", "movedim.int")
@given(x=tensors(shapes(1, 5), ANY), data=st.data())
def test_two_dimensions_move(op, x, data):
    check(op, x, data.draw(dims(x)), data.draw(dims(x)))


@for_ops("movedim.intlist")
@given(x=tensors(shapes(2, 5), ANY), data=st.data())
def test_movedim(op, x, data):
    pick = st.permutations(range(x.ndim)).map(lambda order: order[:2])
    check(op, x, data.draw(pick), data.draw(pick))


@for_ops("t", "mT")
@given(x=tensors(shapes(2, 2), ANY))
def test_matrix_transpose(op, x):
    check(op, x)


@for_ops("t")
@given(x=tensors(shapes(0, 1), ANY))
def test_t_of_less_than_a_matrix(op, x):
    check(op, x)


@for_ops("expand", "expand_as")
@given(shape=shapes(), data=st.data())
def test_expand(op, shape, data):
    kept = [s if data.draw(st.booleans()) else 1 for s in shape]
    x = data.draw(tensors(kept, ANY))
    wide = [2, *shape] if data.draw(st.booleans()) else list(shape)
    if op == "aten.expand_as.default":
        check(op, x, torch.zeros(wide))
    else:
        lead = len(wide) - len(kept)
        check(op, x, [-1 if i >= lead and kept[i - lead] == s else s for i, s in enumerate(wide)])


@for_ops("clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy")
@given(x=tensors(dtype=ANY))
def test_copies(op, x):
    check(op, x.clone() if op == "aten.detach_.default" else x)  # a view cannot be detached in place


@for_ops("clone", "contiguous")
def test_copies_in_a_memory_format(op):
    check(op, torch.randn(2, 3, 4, 5), memory_format=torch.channels_last)


@for_ops("dropout")
def test_dropout_outside_of_training(op):
    check(op, torch.randn(3), 0.5, False)
    check(op, torch.randn(3), 0.0, True)


@for_ops("slice.Tensor")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_slice(op, x, data):
    dim = data.draw(dims(x))
    size = x.shape[dim]
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.sampled_from([None, size, 2**63 - 1]) | st.integers(start + 1, size))
    start = data.draw(st.sampled_from([start, start - size]))
    check(op, x, dim, start, end, data.draw(st.integers(1, 3)))
    check(op, x, dim)


@for_ops("select.int")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_select(op, x, data):
    dim = data.draw(dims(x))
    check(op, x, dim, data.draw(st.integers(-x.shape[dim], x.shape[dim] - 1)))


@for_ops("narrow")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_narrow(op, x, data):
    dim = data.draw(dims(x))
    start = data.draw(st.integers(0, x.shape[dim] - 1))
    check(op, x, dim, start, data.draw(st.integers(1, x.shape[dim] - start)))


@for_ops("split.Tensor", "chunk")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_parts_of_equal_size(op, x, data):
    check(op, x, data.draw(st.integers(1, 4)), data.draw(dims(x)))


@for_ops("split.sizes", "split_with_sizes")
@given(x=tensors([2, 6, 3], ANY), sizes=st.sampled_from([[6], [1, 5], [2, 3, 1]]))
def test_parts_of_given_sizes(op, x, sizes):
    check(op, x, sizes, 1)
    check(op, x, sizes, -2)


@for_ops("unbind.int")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_unbind(op, x, data):
    check(op, x, data.draw(dims(x)))


@for_ops("cat")
@given(shape=shapes(1), count=st.integers(1, 3), data=st.data())
def test_cat(op, shape, count, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for _ in range(count):
        size = list(shape)
        size[dim] = data.draw(st.integers(1, 3))
        parts.append(data.draw(tensors(size, ANY.filter(lambda t: t != torch.int8))))
    check(op, parts, dim)


@for_ops("stack")
@given(shape=shapes(0, 3), dtype=ANY, count=st.integers(1, 3), data=st.data())
def test_stack(op, shape, dtype, count, data):
    parts = [data.draw(tensors(shape, dtype)) for _ in range(count)]
    check(op, parts, data.draw(st.integers(-len(shape) - 1, len(shape))))


@for_ops("repeat")
@given(x=tensors(shapes(0, 3), ANY), data=st.data())
def test_repeat(op, x, data):
    more = data.draw(st.integers(0, 2))
    check(op, x, data.draw(st.lists(st.integers(1, 3), min_size=x.ndim + more, max_size=x.ndim + more)))


@for_ops("unfold")
@given(x=tensors(shapes(1, 4), ANY), step=st.integers(1, 3), data=st.data())
def test_unfold(op, x, step, data):
    dim = data.draw(dims(x))
    check(op, x, dim, data.draw(st.integers(1, x.shape[dim])), step)


@for_ops("repeat_interleave.self_int")
@given(x=tensors(shapes(0, 3), ANY), times=st.integers(1, 3), data=st.data())
def test_repeat_interleave(op, x, times, data):
    check(op, x, times)
    if x.ndim:
        check(op, x, times, data.draw(dims(x)))


@for_ops("flip")
@given(x=tensors(dtype=ANY), data=st.data())
def test_flip(op, x, data):
    picked = data.draw(st.lists(dims(x), max_size=2, unique_by=lambda d: d % x.ndim)) if x.ndim else []
    check(op, x, picked)


@for_ops("roll")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_roll(op, x, data):
    shift = st.integers(-7, 7)
    check(op, x, [data.draw(shift)])
    check(op, x, [data.draw(shift), data.draw(shift)], [data.draw(dims(x)), data.draw(dims(x))])


@for_ops("pixel_shuffle", "pixel_unshuffle")
@given(factor=st.integers(1, 3), sizes=st.tuples(*[st.integers(1, 2)] * 4), data=st.data())
def test_pixel_shuffle(op, factor, sizes, data):
    n, c, h, w = sizes
    square = factor * factor
    shape = [n, c * square, h, w] if op == "aten.pixel_shuffle.default" else [n, c, h * factor, w * factor]
    check(op, data.draw(tensors(shape, NUMBER)), factor)
    check(op, data.draw(tensors(shape[1:], NUMBER)), factor)


def test_empty_results_are_refused():
    x = torch.ones(2, 3)
    assert "empty" in refusal("aten.slice.Tensor", x, 0, 2, 2)
    assert "empty" in refusal("aten.repeat.default", x, [0, 1])
    assert "empty" in refusal("aten.split_with_sizes.default", x, [0, 3], 1)
    assert "empty" in refusal("aten.narrow.default", x, 0, 0, 0)
    assert "empty" in refusal("aten.expand.default", x[:1], [0, 3])


def test_dropout_in_training_is_refused():
    assert "training" in refusal("aten.dropout.default", torch.ones(3), 0.5, True)


@pytest.mark.parametrize("ndim", [9, 12])
def test_more_dimensions_than_oneflow_has_kernels_for_are_refused(ndim):
    x = torch.randn([1] * (ndim - 2) + [2, 3])
    for name, *args in (
        ("permute.default", list(range(ndim))[::-1]), ("slice.Tensor", -1, 1, 2), ("flip.default", [0]),
        ("expand.default", [2] + [-1] * (ndim - 1)), ("add.Tensor", x[..., :1]), ("sum.dim_IntList", [0, ndim - 1]),
        ("lt.Tensor", x[..., :1]), ("softmax.int", -1), ("cumsum.default", 0),
    ):  # fmt: skip
        assert "dimensions" in refusal(f"aten.{name}", x, *args), name


@for_ops("view")
def test_reshape_takes_many_dimensions(op):
    check(op, torch.randn([1] * 9 + [2, 3]), [3, 2])


def test_where_and_reductions_take_seven_dimensions():
    x = torch.randn([1] * 6 + [2, 3])
    assert "dimensions" in refusal("aten.where.self", x < 0, x, x)
    assert "dimensions" in refusal("aten.sum.dim_IntList", x, [7])


def test_a_permutation_keeps_every_bit():
    """oneDNN's kernel for 8 x 8 loses some."""
    eights = [((8, 8), (1, 0)), ((8, 4, 2), (1, 2, 0)), ((2, 1, 8, 8), (3, 0, 1, 2)), ((3, 8, 5, 8), (2, 0, 3, 1)),
              ((8, 3, 8), (2, 1, 0)), ((2, 8, 2, 2, 2), (2, 3, 4, 0, 1))]  # fmt: skip
    cases = []
    for shape, dims in eights:
        given = torch.randn(shape), torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)
        cases += [Case("aten.permute.default", (x, list(dims)), {}) for x in given]
    for case, (result,) in zip(cases, run(cases)):
        with case.named():
            assert torch.equal(result, case.expected[0])
