"""Copies, concatenation, upsampling and embedding: to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from .math_library import Output, available, library

ITEMS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(params=available())
def lib(request):
    return library(request.param)


variants = st.sampled_from(available()).map(library)
items = st.sampled_from(tuple(ITEMS))


def numbers(count: int, item: int) -> torch.Tensor:
    return torch.randint(0, 256, (count * item,), dtype=torch.uint8).view(ITEMS[item])


def expected_copy(storage, sizes, strides, offset):
    index = torch.tensor(offset)
    for size, stride in zip(sizes, strides):
        index = index.unsqueeze(-1) + torch.arange(size) * stride
    return storage[index.reshape(sizes)]


def check_copy(lib, item, sizes, strides):
    low = sum(min(0, (size - 1) * stride) for size, stride in zip(sizes, strides))
    high = sum(max(0, (size - 1) * stride) for size, stride in zip(sizes, strides))
    storage = numbers(high - low + 1, item)  # not one item more than the view covers
    assert torch.equal(lib.copy(storage, sizes, strides, -low), expected_copy(storage, sizes, strides, -low))


@st.composite
def views(draw):
    """A permutation of a dense shape with steps, flips and broadcasts."""
    sizes = draw(
        st.lists(st.sampled_from([1, 2, 3, 5, 8, 9, 17, 40]), min_size=0, max_size=5).filter(lambda s: _count(s) < 60_000)
    )
    order = draw(st.permutations(range(len(sizes))))
    strides, step = [0] * len(sizes), draw(st.sampled_from([1, 1, 1, 2, 3]))
    for d in order:
        kind = draw(st.sampled_from(["plain"] * 5 + ["flipped", "broadcast", "padded"]))
        step += kind == "padded"
        strides[d] = {"flipped": -step, "broadcast": 0}.get(kind, step)
        step *= 1 if kind == "broadcast" else sizes[d]
    return sizes, strides


def _count(sizes):
    return torch.Size(sizes).numel()


@settings(max_examples=400)
@given(variants, items, views())
def test_copies_of_any_view(lib, item, view):
    check_copy(lib, item, *view)


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize(
    "sizes, strides",
    [
        ((2, 64, 131, 3), (131 * 3 * 64, 1, 192, 64)),  # channels last to channels first, nearly
        ((2, 1009, 40), (40 * 1009, 1, 1009)),  # a transpose
        ((2, 40, 1009), (40 * 1009, 1, 40)),
        ((1009, 3), (1, 1009)),
        ((3, 1009), (1, 3)),
        ((4, 1009), (1, 4)),
        ((2, 8, 77, 40), (77 * 320, 40, 320, 1)),  # heads
        ((3, 40000), (0, 1)),
        ((40000, 3), (1, 0)),
        ((70001,), (-1,)),
        ((70001,), (2,)),
        ((1,), (5,)),
        ((), ()),
    ],
)
def test_copies_of_many_items(lib, item, sizes, strides):
    check_copy(lib, item, sizes, strides)


def test_a_copy_of_many_dimensions(lib):
    sizes = (2,) * 12
    check_copy(lib, 4, sizes, [2 ** ((5 * d) % 12) for d in range(12)])


def test_an_empty_copy_writes_nothing(lib):
    y = Output((16,), torch.int32)
    sizes = torch.tensor([3, 0, 2])
    lib.table.copy(4, None, y.address, 3, sizes.data_ptr(), sizes.data_ptr())
    assert y.untouched()


@settings(max_examples=100)
@given(variants, st.lists(st.sampled_from([0, 1, 3, 16, 20, 1280]), min_size=1, max_size=5), st.sampled_from([1, 2, 7, 65]))
def test_concat_of_any_widths(lib, widths, rows):
    parts = [torch.randint(0, 256, (rows, width), dtype=torch.uint8) for width in widths]
    assert torch.equal(lib.concat(parts), torch.cat(parts, 1))


@pytest.mark.parametrize("rows, widths", [(1, (100_003, 77, 200_001)), (2, (262_144, 1)), (501, (640, 1280)), (70_001, (3, 4))])
def test_concat_of_much(lib, rows, widths):
    parts = [torch.randint(0, 256, (rows, width), dtype=torch.uint8) for width in widths]
    assert torch.equal(lib.concat(parts), torch.cat(parts, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "channels, size, to",
    [
        (1, (3, 5), (6, 10)), (2, (1, 1), (3, 7)), (4, (17, 3), (34, 6)), (320, (8, 8), (16, 16)), (3, (13, 11), (20, 31)),
        (5, (9, 9), (4, 3)), (1, (64, 64), (128, 128)), (7, (10, 10), (10, 15)), (2, (33, 49), (67, 99)),
        (16, (32, 32), (64, 64)),
    ],
)  # fmt: skip
def test_upsampling(lib, channels, size, to, dtype):
    x = torch.randint(0, 200, (2, *size, channels)).to(dtype)
    wide = x.permute(0, 3, 1, 2).double()
    expected = functional.interpolate(wide, size=to, mode="nearest").to(dtype).permute(0, 2, 3, 1)
    assert torch.equal(lib.upsample_nearest(x, *to), expected)


def test_upsampling_takes_the_pixels_that_torch_takes(lib):
    for w in range(1, 40):
        x = torch.arange(w, dtype=torch.float32).view(1, 1, w, 1)
        for ow in range(1, 120, 1 if w < 20 else 7):
            expected = functional.interpolate(x.view(1, 1, w), size=ow, mode="nearest").view(1, 1, ow, 1)
            assert torch.equal(lib.upsample_nearest(x, 1, ow), expected), (w, ow)


@pytest.mark.parametrize("width", [1, 3, 768])
@pytest.mark.parametrize("count", [0, 1, 77, 1001])
def test_embedding(lib, count, width):
    table, ids = torch.randn(50, width), torch.randint(0, 50, (count,))
    assert torch.equal(lib.embedding(table, ids), table[ids])


@pytest.mark.parametrize("wrong", [-1, 50, 2**62, -(2**63)])
def test_embedding_refuses_ids_outside_of_the_table(lib, wrong):
    ids = torch.tensor([0, 49, wrong])
    assert lib.embedding(torch.randn(50, 4), ids) is None
