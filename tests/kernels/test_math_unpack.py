"""Any part of a filter's memory, out of the packed filter and to the bit."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .math_library import Input, Output, available
from .test_math_product import filter_of, products

# (n, c, kh, kw): panels and blocks that are full, and that are not.
SHAPES = [
    (32, 144, 1, 1),
    (64, 150, 1, 1),
    (33, 7, 1, 1),
    (70, 41, 3, 3),
    (40, 16, 3, 3),
    (5, 3, 5, 1),
    (35, 4, 13, 13),
    (1, 9, 1, 2),
]
ORDERS = [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (2, 3, 1, 0)]


def memory(weight):
    return weight.as_strided((weight.numel(),), (1,))


@given(st.sampled_from(available()), st.sampled_from(SHAPES), st.sampled_from(ORDERS), st.data())
@settings(max_examples=80)
def test_parts_of_a_filter(variant, shape, order, data):
    table = products(variant)
    back = [order.index(d) for d in range(4)]
    weight = torch.randn([shape[d] for d in order]).permute(back)
    memory(weight).view(torch.int32)[::7] = 0x7FA12345
    filter = filter_of(weight, weight.data_ptr())
    assert table.ordered(ctypes.byref(filter))
    made = Output((table.packed_bytes(ctypes.byref(filter)) // 4,), torch.float32)
    table.pack(ctypes.byref(filter), made.address)
    packed, elsewhere = Input(made.take()), filter_of(weight, 0)
    first = data.draw(st.integers(0, weight.numel() - 1))
    count = data.draw(st.integers(1, weight.numel() - first))
    part = Output((count,), torch.float32)
    table.unpack_range(ctypes.byref(elsewhere), packed.address, first, count, part.address)
    expected = memory(weight)[first : first + count].clone()
    assert torch.equal(part.take().view(torch.int32), expected.view(torch.int32))
    assert table.same_range(ctypes.byref(elsewhere), packed.address, first, count, Input(expected).address)
    bits = expected.view(torch.int32)
    bits[data.draw(st.integers(0, count - 1))] ^= 1 << data.draw(st.integers(0, 30))
    assert not table.same_range(ctypes.byref(elsewhere), packed.address, first, count, Input(expected).address)


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(8, 16)[:, ::2],
        torch.randn(16, 8)[::2],
        torch.randn(4, 4, 3, 3).transpose(2, 3),
        torch.randn(4, 1).expand(4, 5),
    ],
)
def test_filters_that_do_not_lie_in_order(weight):
    assert not products(available()[0]).ordered(ctypes.byref(filter_of(weight, 0)))
