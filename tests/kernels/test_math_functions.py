"""Elementwise functions over all of float32, against float64 and torch."""

import math

import pytest
import torch
from torch.nn import functional

from .math_library import ACTS, TYPES, available, library

INF, NAN = math.inf, math.nan


@pytest.fixture(params=available())
def lib(request):
    return library(request.param)


def all_over() -> torch.Tensor:
    """Random bits, and the ranges where functions bend."""
    bits = torch.randint(-(2**31), 2**31, (60_000,)).to(torch.int32).view(torch.float32)
    near = [torch.empty(30_000).uniform_(-reach, reach) for reach in (1, 6, 20, 110, 30_000)]
    return torch.cat([bits[bits.isfinite()], *near, torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38])])


def units_off(given: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error in units in the last place of float32."""
    known = exact.abs() <= torch.finfo(torch.float32).max
    given, exact = given.double()[known], exact[known]
    unit = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=2.0**-126))) - 23)
    return ((given - exact).abs() / unit).max().item()


FUNCTIONS = {
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "sin": torch.sin, "cos": torch.cos,
    "neg": torch.neg, "abs": torch.abs, "square": torch.square, "erf": torch.erf,
}  # fmt: skip
ACTIVATIONS = {
    "none": lambda x: x,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_right_to_two_units(lib, name):
    x = all_over()
    y, exact = lib.apply(name, x), FUNCTIONS[name](x.double())
    assert torch.equal(y.isnan(), exact.isnan())
    assert torch.equal(y.isinf(), exact.float().isinf())
    assert units_off(y, exact) <= 2


def test_tanh_is_right_to_two_units(lib):
    x = all_over()
    assert units_off(lib.apply("act", x, ACTS.index("tanh")), x.double().tanh()) <= 2


@pytest.mark.parametrize("act", ACTS)
def test_activations_are_as_good_as_torch(lib, act):
    x = all_over()
    exact = ACTIVATIONS[act](x.double())

    def error(y):
        return ((y.double() - exact).abs() / (1 + exact.abs())).max().item()

    assert error(lib.apply("act", x, ACTS.index(act))) <= max(1.2 * error(ACTIVATIONS[act](x)), 2e-7)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_every_half(lib, dtype, act):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    expected = ACTIVATIONS[act](x.double()).to(dtype)
    # One rounding of a float32 result: the neighbour where it lies between two.
    torch.testing.assert_close(
        lib.apply("act", x, ACTS.index(act)), expected, rtol=torch.finfo(dtype).eps, atol=2e-7, equal_nan=True
    )


SPECIAL = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1e-45, -1e-45, 1e38, -1e38, 88.8, -88.8, -104, 200, -200, 1, -1])


@pytest.mark.parametrize("name", [*FUNCTIONS, *ACTS])
def test_special_values_are_as_in_torch(lib, name):
    y = lib.apply("act", SPECIAL, ACTS.index(name)) if name in ACTS else lib.apply(name, SPECIAL)
    # In float64: torch's own gelu of +inf is NaN in float32 only. What vanishes at -88 may vanish altogether.
    expected = (ACTIVATIONS if name in ACTS else FUNCTIONS)[name](SPECIAL.double()).float()
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("exponent", [2, 3, 0.5, -0.5, -1, 0, 1, 1.7, -2.3, 4])
def test_powers(lib, exponent):
    x = torch.cat([torch.empty(5000).uniform_(-20, 20), torch.tensor([0.0, -0.0, INF, NAN, 1.0, -1.0])])
    torch.testing.assert_close(lib.apply("pow_scalar", x, exponent), x.pow(exponent), equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("to", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_casts_round_as_torch(lib, source, to):
    if source == torch.float32:
        bits = torch.randint(-(2**31), 2**31, (99_991,)).to(torch.int32).view(torch.float32)
        ties = (torch.arange(0x3F80, 0x4080) * 65536 + 32768).to(torch.int32).view(torch.float32)
        x = torch.cat([bits, ties, ties + 2**-20, SPECIAL, torch.empty(20_000).uniform_(-70_000, 70_000)])
    else:
        x = torch.arange(-(2**15), 2**15).to(torch.int16).view(source)
    y, expected = lib.cast(x, to), x.to(to)
    assert torch.equal(y.isnan(), expected.isnan())
    # Some processors' bfloat16 instruction takes numbers below 2^-126 for 0.
    normal = x.float().abs() >= 2.0**-126 if to == torch.bfloat16 else ~expected.isnan()
    assert torch.equal(y[normal], expected[normal])
    assert (y[~normal & ~y.isnan()].float().abs() <= 2.0**-126).all()
    assert torch.equal(y.signbit()[~y.isnan()], expected.signbit()[~y.isnan()])


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 15, 16, 17, 33, 70_001])
def test_casts_of_any_length(lib, count):
    x = torch.randn(count)
    for to in TYPES:
        assert torch.equal(lib.cast(x, to), x.to(to))
        assert torch.equal(lib.cast(x.to(to), torch.float32), x.to(to).float())
