"""Norms and softmax against torch in float64: not much less accurate than torch is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from .math_library import ACTS, TYPES, available, library
from .test_math_functions import ACTIVATIONS


@pytest.fixture(params=available())
def lib(request):
    return library(request.param)


variants = st.sampled_from(available()).map(library)
dtypes = st.sampled_from(tuple(TYPES))


def check(y: torch.Tensor, by_torch: torch.Tensor, exact: torch.Tensor) -> None:
    """`y` is no worse than 1.5 times torch in float32, 1.2 times in the half types, or one rounding."""
    assert y.dtype == by_torch.dtype and y.shape == by_torch.shape
    assert torch.equal(y.isnan(), by_torch.isnan())

    def error(z):
        return ((z.double() - exact).abs() / (1 + exact.abs())).nan_to_num().max().item()

    factor, floor = (1.5, 1e-6) if y.dtype == torch.float32 else (1.2, torch.finfo(y.dtype).eps / 2 * 1.01)
    assert error(y) <= max(factor * error(by_torch), floor)


def check_group_norm(lib, x, groups, weight, bias, eps, act, channels_last):
    """x is (n, channels, positions)."""

    def by_torch(dtype):
        parts = [None if t is None else t.to(dtype) for t in (x, weight, bias)]
        # Not the functional form, which refuses groups of one element.
        return ACTIVATIONS[act](torch.group_norm(parts[0], groups, *parts[1:], eps))

    given = x.transpose(1, 2).contiguous() if channels_last else x
    y = lib.group_norm(given, groups, weight, bias, eps, act, channels_last)
    exact = by_torch(torch.float64)
    check(y.transpose(1, 2) if channels_last else y, by_torch(torch.float32).to(x.dtype), exact)


@settings(max_examples=200)
@given(
    variants, dtypes, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3, 7, 8, 17, 64, 131]),
    st.sampled_from([(1, 1), (1, 3), (3, 1), (4, 4), (17, 1), (2, 5), (32, 1), (32, 10), (5, 13)]),
    st.sampled_from(ACTS), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1e-5, 1e-6, 0.1]), st.integers(0, 99),
)  # fmt: skip
def test_group_norm_of_any_shape(lib, dtype, n, positions, shape, act, channels_last, weighted, biased, eps, seed):
    groups, width = shape
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(n, groups * width, positions, generator=generator) * 2 + 0.5).to(dtype)
    weight = torch.randn(groups * width, generator=generator).to(dtype) if weighted else None
    bias = torch.randn(groups * width, generator=generator).to(dtype) if biased else None
    check_group_norm(lib, x, groups, weight, bias, eps, act, channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 320, 1024), (3, 64, 1009), (2, 1280, 64), (1, 32, 20011), (1, 2560, 63)])
def test_group_norm_of_many_parts(lib, shape, dtype, channels_last):
    # Enough work for all threads: samples are split between them, and each part is measured in several chunks.
    x = torch.randn(shape) + torch.linspace(-2, 2, shape[2])  # the parts' means differ
    weight, bias = torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    check_group_norm(lib, x.to(dtype), 32, weight, bias, 1e-6, "silu", channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
def test_group_norm_far_from_zero(lib, channels_last):
    # The variance is lost if it is computed from the sum of squares.
    check_group_norm(lib, torch.randn(2, 64, 4096) + 1000, 8, None, None, 1e-5, "none", channels_last)


def test_group_norm_of_a_constant_and_of_nan(lib):
    x = torch.full((2, 8, 50), 3.25)
    x[1, 0, 7] = math.nan
    for channels_last in (True, False):
        check_group_norm(lib, x, 2, None, None, 1e-5, "silu", channels_last)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_constant_has_no_variance(lib, dtype):
    # Its sums are rounded; the deviations from the mean that they give must not be scaled up by 1 / sqrt(eps).
    x = torch.full((2, 64, 3001), 0.1).to(dtype)
    for made in (
        lib.group_norm(x, 8),
        lib.group_norm(x.transpose(1, 2).contiguous(), 8, channels_last=True),
        lib.layer_norm(x.flatten(0, 1)),
    ):
        assert made.abs().max() <= 1e-6


SHAPES = [(1, 1), (3, 17), (5, 320), (1, 8), (2, 20_011), (501, 77), (40, 1280)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(lib, shape, dtype):
    x = (torch.randn(shape) * 3 + 5).to(dtype)
    weight, bias = torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    for w, b, eps in ((weight, bias, 1e-5), (weight, None, 1e-6), (None, bias, 0.1), (None, None, 1e-5)):

        def by_torch(kind, w=w, b=b, eps=eps):
            wide = [None if t is None else t.to(kind) for t in (x, w, b)]
            return functional.layer_norm(wide[0], (shape[1],), *wide[1:], eps)

        check(lib.layer_norm(x, w, b, eps), by_torch(torch.float32).to(dtype), by_torch(torch.float64))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(lib, shape, dtype):
    x, weight = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[1]).to(dtype)
    for w, eps in ((weight, 1e-6), (None, 0.1)):

        def by_torch(kind, w=w, eps=eps):
            return functional.rms_norm(x.to(kind), (shape[1],), None if w is None else w.to(kind), eps)

        check(lib.rms_norm(x, w, eps), by_torch(torch.float32).to(dtype), by_torch(torch.float64))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [0, -300, 90])
def test_softmax(lib, shape, dtype, shift):
    x = (torch.randn(shape) * 4 + shift).to(dtype)
    by_torch, exact = x.float().softmax(-1).to(dtype), x.double().softmax(-1)
    y = lib.softmax(x)
    check(y, by_torch, exact)
    torch.testing.assert_close(y.double(), exact, rtol=max(2e-6, torch.finfo(dtype).eps), atol=1e-7)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("columns", [1, 5, 16, 19, 77])
def test_softmax_of_infinities_and_nan(lib, columns, dtype):
    x = torch.randn(7, columns)
    x[0] = -math.inf
    x[1, : columns // 2] = -math.inf
    x[2, columns // 2 :] = -math.inf
    x[3, columns // 3] = math.inf
    x[4, -1] = math.nan
    x[5] = -3e38
    x = x.to(dtype)
    torch.testing.assert_close(lib.softmax(x), x.float().softmax(-1).to(dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_gated(lib, act, gate_first, dtype):
    for shape in ((1, 2), (3, 34), (7, 640), (257, 2 * 131)):
        x = (torch.randn(shape) * 3).to(dtype)

        def by_torch(kind, x=x):
            halves = x.to(kind).chunk(2, -1)
            return halves[gate_first] * ACTIVATIONS[act](halves[not gate_first])

        check(lib.gated(x, act, gate_first), by_torch(torch.float32).to(dtype), by_torch(torch.float64))
