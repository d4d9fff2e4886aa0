"""Lowerings of look-ups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import Case, check, for_ops, refusal, run
from .strategies import ANY, FLOAT, INDEX, shapes, sizes, tensors, weights


@for_ops("embedding")
@given(count=sizes, width=sizes, dtype=FLOAT, data=st.data())
def test_embedding(op, count, width, dtype, data):
    indices = data.draw(tensors(shapes(0, 3), INDEX, low=0, high=count - 1))
    check(op, data.draw(weights([count, width], dtype)), indices)


@for_ops("index_select")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_index_select(op, x, data):
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    check(op, x, dim, data.draw(tensors(st.tuples(sizes), INDEX, low=0, high=x.shape[dim] - 1)))


@for_ops("index.Tensor")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_index(op, x, data):
    """One to all leading dimensions, with indices that broadcast and count from either end."""
    count = data.draw(st.integers(1, min(x.ndim, 3)))
    shape = data.draw(shapes(0, 3))
    indices = []
    for dim in range(count):
        kept = [s if data.draw(st.booleans()) else 1 for s in shape]
        indices.append(data.draw(tensors(kept, INDEX, low=-x.shape[dim], high=x.shape[dim] - 1)))
    check(op, x, indices)


@for_ops("index.Tensor")
@given(x=tensors(shapes(2, 4), ANY), data=st.data())
def test_index_with_dimensions_left_out(op, x, data):
    shape = data.draw(shapes(0, 2))
    indices = [None] * x.ndim
    for dim in data.draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=2, unique=True)):
        indices[dim] = data.draw(tensors(shape, INDEX, low=0, high=x.shape[dim] - 1))
    while indices[-1] is None:
        indices.pop()
    check(op, x, indices)


@for_ops("slice_scatter", "select_scatter")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_scatter(op, x, data):
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    if op == "aten.select_scatter.default":
        at = data.draw(st.integers(-x.shape[dim], x.shape[dim] - 1))
        check(op, x, data.draw(tensors(x.select(dim, 0).shape, st.just(x.dtype))), dim, at)
    else:
        start = data.draw(st.integers(0, x.shape[dim] - 1))
        end = data.draw(st.integers(start + 1, x.shape[dim]))
        check(op, x, data.draw(tensors(x.narrow(dim, 0, end - start).shape, st.just(x.dtype))), dim, start, end)
        check(op, x, x, dim)


@for_ops("slice_scatter")
@given(x=tensors([2, 12, 3], ANY), step=st.sampled_from([2, 3, 4]), dim=st.sampled_from([1, -2]), data=st.data())
def test_scatter_with_a_step(op, x, step, dim, data):
    """Rotary embeddings write their even and odd elements like this."""
    start = data.draw(st.integers(0, step - 1))
    check(op, x, data.draw(tensors([2, 12 // step, 3], st.just(x.dtype))), dim, start, 2**63 - 1, step)


@for_ops("gather")
@given(x=tensors(shapes(1, 3), ANY), data=st.data())
def test_gather(op, x, data):
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    shape = [data.draw(st.integers(1, s)) for s in x.shape]
    shape[dim] = data.draw(sizes)
    check(op, x, dim, data.draw(tensors(shape, st.just(torch.int64), low=0, high=x.shape[dim] - 1)))


@pytest.mark.parametrize("wrong", [-1, 3, -4, 2**40])
def test_an_index_out_of_range_neither_ends_the_process_nor_goes_unseen(wrong):
    """torch raises IndexError; a graph cannot, so the rows are NaN."""
    table = torch.randn(3, 2)
    fine = torch.tensor([1, 0])
    for op, args in (
        ("aten.embedding.default", lambda i: (table, i)),
        ("aten.index_select.default", lambda i: (table, 0, i)),
        ("aten.index.Tensor", lambda i: (table, [i])),
        ("aten.index.Tensor", lambda i: (table, [i, torch.zeros_like(i)])),
    ):
        if op == "aten.index.Tensor" and wrong == -1:
            continue  # the last one
        case = Case(op, args(fine), {})
        bad = torch.tensor([1, wrong])
        case.args = args(bad)
        (result,) = run([case])[0]
        assert torch.equal(result[0], case.made[0]), op
        assert result[1].isnan().all(), op


def test_what_is_refused():
    x = torch.randn(3, 4)
    assert "mask" in refusal("aten.index.Tensor", x, [torch.tensor([True, False, True])])
    assert "a step of 2" in refusal("aten.slice_scatter.default", x, x[:, 1:3:2], 1, 1, 3, 2)


@for_ops("index_put")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_index_put(op, x, data):
    """Into one or two dimensions anywhere, each place once; the values broadcast."""
    dims = data.draw(st.lists(st.integers(0, x.ndim - 1), min_size=1, max_size=2, unique=True))
    count = data.draw(st.integers(1, min(x.shape[d] for d in dims)))
    chosen = torch.tensor(data.draw(st.permutations(range(min(x.shape[d] for d in dims)))))[:count]
    indices = [chosen - data.draw(st.sampled_from([0, x.shape[d]])) if d in dims else None for d in range(x.ndim)]
    while indices[-1] is None:
        indices.pop()
    shape = x[tuple(slice(None) if i is None else i for i in indices)].shape
    kept = [s if data.draw(st.booleans()) else 1 for s in shape]
    check(op, x, indices, data.draw(tensors(kept[data.draw(st.integers(0, len(kept))) :], st.just(x.dtype))))


@for_ops("index_put")
@given(x=tensors(shapes(1), ANY), data=st.data())
def test_index_put_of_one_value_under_a_mask(op, x, data):
    mask = data.draw(tensors(x.shape[: data.draw(st.integers(1, x.ndim))], torch.bool))
    check(op, x, [mask], data.draw(tensors(data.draw(st.sampled_from([(), (1,)])), st.just(x.dtype))))


def test_index_put_refuses_what_depends_on_data():
    x, index = torch.zeros(3), torch.tensor([0, 0])
    assert "added up" in refusal("aten.index_put.default", x, [index], torch.ones(2), True)
    assert "as many values" in refusal("aten.index_put.default", x, [torch.tensor([True, False, True])], torch.ones(2))


def test_index_put_spoils_the_result_where_torch_raises():
    x = Case("aten.index_put.default", (torch.zeros(3), [torch.tensor([2])], torch.ones(1)), {})
    x.args = (torch.zeros(3), [torch.tensor([3])], torch.ones(1))
    assert run([x])[0][0].isnan().all()
