"""Convolutions and linear layers in float32 against torch in float64, from packed weights and from torch's own."""

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from .math_library import ACTS, Input, Output, _built, available, i32, i64, ptr
from .test_math_functions import ACTIVATIONS


class Filter(ctypes.Structure):
    _fields_ = (("data", ptr), ("n", i64), ("c", i64), ("kh", i64), ("kw", i64), ("strides", i64 * 4))


class Product(ctypes.Structure):
    _fields_ = (
        ("x", ptr), ("batch", i64), ("h", i64), ("w", i64), ("oh", i64), ("ow", i64),
        ("stride", i64 * 2), ("padding", i64 * 2), ("dilation", i64 * 2), ("filter", Filter),
        ("packed", ptr), ("bias", ptr), ("residual", ptr), ("act", i32), ("act_first", ctypes.c_bool), ("gate", i32), ("y", ptr),
    )  # fmt: skip


class Products(ctypes.Structure):
    _fields_ = (
        ("packed_bytes", ctypes.CFUNCTYPE(i64, ctypes.POINTER(Filter))),
        ("pack", ctypes.CFUNCTYPE(None, ctypes.POINTER(Filter), ptr)),
        ("unpack", ctypes.CFUNCTYPE(None, ctypes.POINTER(Filter), ptr, ptr)),
        ("ordered", ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Filter))),
        ("unpack_range", ctypes.CFUNCTYPE(None, ctypes.POINTER(Filter), ptr, i64, i64, ptr)),
        ("same_range", ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Filter), ptr, i64, i64, ptr)),
        ("run", ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Product))),
        ("attention", ptr),
    )


def products(variant: str) -> Products:
    loaded = ctypes.CDLL(str(_built()[1][variant]))
    loaded.dfo_products.restype = ctypes.POINTER(Products)
    return loaded.dfo_products().contents


variants = st.sampled_from(available())


def filter_of(weight: torch.Tensor, address: int) -> Filter:
    view = weight if weight.ndim == 4 else weight[:, :, None, None]
    return Filter(address, *view.shape, (i64 * 4)(*view.stride()))


def packed(table, weight) -> Input:
    """The packed filter, at the end of a page; also that it unpacks to the same numbers."""
    source = weight if not weight.is_contiguous() else Input(weight)
    address = source.data_ptr() if isinstance(source, torch.Tensor) else source.address
    size = table.packed_bytes(ctypes.byref(filter_of(weight, address)))
    made = Output((size // 4,), torch.float32)
    table.pack(ctypes.byref(filter_of(weight, address)), made.address)
    result = made.take()
    back = torch.full_like(weight, 7.0)
    table.unpack(ctypes.byref(filter_of(weight, 0)), result.data_ptr(), back.data_ptr())
    assert torch.equal(back, weight)
    return Input(result)


def run(variant, x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), residual=None, act="none", first=False,
        gate="none", pack=True):  # fmt: skip
    """x (n, h, w, c) -> (n, oh, ow, oc)."""
    table = products(variant)
    n, h, w, _ = x.shape
    kh, kw = weight.shape[2:] if weight.ndim == 4 else (1, 1)
    oh, ow = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in zip((h, w), padding, dilation, (kh, kw), stride))
    inputs = [None if t is None else Input(t) for t in (x, bias, residual)]
    kept = Input(weight) if weight.is_contiguous() else weight
    address = kept.address if isinstance(kept, Input) else kept.data_ptr()
    made = packed(table, weight) if pack else None
    y = Output((n, oh, ow, weight.shape[0] // (1 if gate == "none" else 2)), torch.float32)
    pair = lambda values: (i64 * 2)(*values)  # noqa: E731
    assert table.run(ctypes.byref(Product(
        inputs[0].address, n, h, w, oh, ow, pair(stride), pair(padding), pair(dilation), filter_of(weight, address),
        made.address if made else None, *(t.address if t else None for t in inputs[1:]), ACTS.index(act), first,
        ACTS.index(gate), y.address,
    )))  # fmt: skip
    return y.take()


def reference(x, weight, bias, stride, padding, dilation, residual, act, first, gate):
    weight = weight if weight.ndim == 4 else weight[:, :, None, None]
    made = functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation).permute(0, 2, 3, 1)
    if gate != "none":
        a, b = made.chunk(2, -1)
        return a * ACTIVATIONS[gate](b)
    made = ACTIVATIONS[act](made) if first else made
    made = made if residual is None else made + residual
    return made if first else ACTIVATIONS[act](made)


def check(variant, x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), residual=None, act="none", first=False,
          gate="none", pack=True):  # fmt: skip
    """At most 1.5 times torch's own error, or 1e-6 of the largest result."""
    options = (stride, padding, dilation, residual, act, first, gate)
    y = run(variant, x, weight, bias, *options, pack)
    by_torch = reference(x, weight, bias, *options)
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    exact = reference(*wide, stride, padding, dilation, None if residual is None else residual.double(), act, first, gate)
    assert y.shape == by_torch.shape
    for measure in (lambda t: t.abs().max().item(), lambda t: t.square().mean().sqrt().item()):
        assert measure(y - exact) <= max(1.5 * measure(by_torch - exact), 1e-6 * measure(exact))
    return y


@settings(max_examples=150, deadline=None)
@given(
    variants, st.integers(1, 3), st.integers(1, 9), st.integers(1, 14), st.sampled_from([1, 2, 3, 17, 33, 100]),
    st.sampled_from([1, 5, 31, 32, 33, 64, 70]), st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 2), (7, 7)]), st.integers(1, 2),
    st.integers(0, 3), st.integers(1, 2), st.sampled_from(ACTS), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_convolutions_of_any_shape(
    variant, n, h, w, c, oc, kernel, stride, padding, dilation, act, first, biased, adds, last, pack, seed
):
    if h + 2 * padding < dilation * (kernel[0] - 1) + 1 or w + 2 * padding < dilation * (kernel[1] - 1) + 1:
        return
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, h, w, c, generator=generator)
    # Results of about 1: an activation would magnify the error of larger ones.
    weight = torch.randn(oc, c, *kernel, generator=generator) / (c * kernel[0] * kernel[1]) ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last) if last else weight
    bias = torch.randn(oc, generator=generator) if biased else None
    pairs = (stride, stride), (padding, padding), (dilation, dilation)
    shape = reference(x, weight, None, *pairs, None, "none", True, "none").shape
    residual = torch.randn(shape, generator=generator) if adds else None
    check(variant, x, weight, bias, *pairs, residual, act, first, pack=pack)


@settings(max_examples=60, deadline=None)
@given(
    variants, st.integers(1, 3), st.integers(1, 9), st.sampled_from([16, 32, 48]), st.sampled_from([32, 64, 96, 320]),
    st.sampled_from([5, 32, 70]), st.integers(0, 3), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_neighbours_that_share_their_pixels(variant, n, h, ow, c, oc, padding, pack, seed):
    """Where results of a line come in sixteens, AMX splits each pixel once for its nine taps."""
    h, w = max(h, 3 - 2 * padding), ow + 2 - 2 * padding
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(n, h, w, c, generator=generator), torch.randn(oc, c, 3, 3, generator=generator) / (9 * c) ** 0.5
    check(variant, x, weight, torch.randn(oc, generator=generator), padding=(padding, padding), act="silu", pack=pack)


@settings(max_examples=80, deadline=None)
@given(
    variants, st.sampled_from([1, 2, 3, 11, 12, 13, 25, 77, 190]), st.sampled_from([1, 7, 288, 289, 600]),
    st.sampled_from([64, 128, 320, 640]), st.sampled_from(ACTS[1:]), st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_gated_linear_layers(variant, rows, c, out, gate, biased, pack, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(1, 1, rows, c, generator=generator), torch.randn(out, c, generator=generator) / c**0.5
    bias = torch.randn(out, generator=generator) if biased else None
    check(variant, x, weight, bias, gate=gate, pack=pack)


@pytest.mark.parametrize("variant", available())
@pytest.mark.parametrize(
    "shape",
    [(2, 32, 32, 64, 96, 3), (3, 20, 48, 320, 64, 3), (2, 4, 4, 640, 320, 3), (1, 40, 40, 40, 40, 1), (1, 1, 1500, 320, 64, 1),
     (1, 6, 512, 128, 40, 3)],
)  # fmt: skip
def test_large_ones_on_all_threads(variant, shape):
    n, h, w, c, oc, k = shape
    x, weight, bias = torch.randn(n, h, w, c), torch.randn(oc, c, k, k), torch.randn(oc)
    same = [check(variant, x, weight, bias, padding=(k // 2, k // 2), act="silu", pack=pack) for pack in (True, False)]
    # Few rows of a filter that is not packed are multiplied in another order on AMX.
    if variant != "amx" or n * h * w > 256:
        assert torch.equal(*same), "packed or not makes a difference"


@pytest.mark.parametrize("variant", available())
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(2, 4, 4, 640, 320, 3), (2, 8, 8, 70, 100, 3), (1, 1, 77, 768, 320, 1), (1, 5, 5, 33, 2000, 2), (3, 14, 15, 64, 70, 1)],
)
def test_few_rows(variant, shape, last):
    """Latents of 4 x 4, the tokens of a prompt: the weights, in either layout, weigh more than what they meet."""
    n, h, w, c, oc, k = shape
    generator = torch.Generator().manual_seed(n * c)
    x, weight = torch.randn(n, h, w, c, generator=generator), torch.randn(oc, c, k, k, generator=generator) / (c * k * k) ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last) if last else weight
    bias, padding = torch.randn(oc, generator=generator), (k // 2, k // 2)
    residual = torch.randn(reference(x, weight, None, (1, 1), padding, (1, 1), None, "none", True, "none").shape)
    check(variant, x, weight, bias, padding=padding, residual=residual, act="silu", pack=False)


@pytest.mark.parametrize("variant", available())
def test_the_error_does_not_grow_with_the_depth(variant):
    """oneDNN's one chain over 9 * 1280 products is 7 times as wrong as torch's contiguous convolution."""
    x, weight = torch.randn(1, 8, 8, 1280), torch.randn(32, 1280, 3, 3)
    check(variant, x, weight, padding=(1, 1))


@pytest.mark.parametrize("variant", available())
def test_nan_and_infinity_stay_where_they_are(variant):
    x, weight = torch.zeros(1, 1, 5, 3), torch.ones(4, 3)
    x[0, 0, 2, 1], x[0, 0, 3, 0] = float("nan"), float("inf")
    y = run(variant, x, weight)[0, 0]
    assert y[2].isnan().all() and y[3].isinf().all() and not y[[0, 1, 4]].any()


@pytest.mark.parametrize("variant", available())
@pytest.mark.parametrize("shape", [(1, 20, 16, 32, 40), (1, 5, 8, 64, 40), (1, 20, 12, 20, 40)])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_pixel_that_is_not_finite_spoils_its_neighbours_alone(variant, shape, value):
    """On AMX these are three ways, and each of them has to leave such an image to the multiply-add tiles."""
    n, h, w, c, oc = shape
    x, weight = torch.randn(n, h, w, c), (torch.rand(oc, c, 3, 3) + 0.1) / (9 * c) ** 0.5
    clean = run(variant, x, weight, padding=(1, 1), pack=False)
    x[0, 2, 4, c - 1] = value
    y = run(variant, x, weight, padding=(1, 1), pack=False)
    spoiled = torch.zeros(n, h, w, oc, dtype=torch.bool)
    spoiled[0, 1:4, 3:6] = True
    assert torch.equal(~y.isfinite(), spoiled) and (value != value or (y[spoiled] == value).all())
    torch.testing.assert_close(y[~spoiled], clean[~spoiled])
