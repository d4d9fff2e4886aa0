"""Chains of elementwise operations against the same ones in torch, and all kernels from several threads at once."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from .math_library import ACTS, CODES, TYPES, available, library
from .test_math_functions import ACTIVATIONS

INF, NAN = math.inf, math.nan


@pytest.fixture(params=available())
def lib(request):
    return library(request.param)


BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip
UNARY = {
    "add_scalar": lambda x, v: x + v,
    "mul_scalar": lambda x, v: x * v,
    "rsub_scalar": lambda x, v: v - x,
    "rdiv_scalar": lambda x, v: v / x,
    "max_scalar": lambda x, v: x.clamp(min=v),
    "min_scalar": lambda x, v: x.clamp(max=v),
    "pow_scalar": lambda x, v: x.pow(v),
    "act": lambda x, v: ACTIVATIONS[ACTS[int(v)]](x),
    **{name: (lambda x, v, name=name: getattr(torch, name)(x)) for name in CODES[CODES.index("exp") :]},
}
# Those that keep a value of a few units at a few units, so that long chains stay comparable.
TAME = ("add", "sub", "max", "min", "add_scalar", "mul_scalar", "rsub_scalar", "max_scalar", "min_scalar", "act", "sin", "cos",
        "neg", "abs", "erf")  # fmt: skip


def by_torch(operands, instructions, dtype=torch.float64):
    values = [t.to(dtype) for t in operands]
    for code, a, b, value in instructions:
        values.append(BINARY[code](values[a], values[b]) if code in BINARY else UNARY[code](values[a], value))
    return values[-1]


@st.composite
def operands_of_one_shape(draw):
    """1 to 4 tensors that broadcast to one shape, with strides of all kinds."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 17, 40]), min_size=1, max_size=6).filter(lambda s: math.prod(s) < 9000))
    made = []
    for i in range(draw(st.integers(1, 4))):
        kept = [s if i == 0 or draw(st.integers(0, 3)) else 1 for s in shape]
        order = draw(st.permutations(range(len(kept)))) if draw(st.booleans()) else list(range(len(kept)))
        dense = torch.randn([kept[d] for d in order], generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        dense = dense.to(draw(st.sampled_from(tuple(TYPES))))
        if draw(st.integers(0, 3)) == 0:
            dense = torch.stack([dense, -dense], -1)[..., 0]  # no stride is 1
        made.append(dense.permute([order.index(d) for d in range(len(kept))]))
    return made


@st.composite
def programs(draw):
    operands = draw(operands_of_one_shape())
    instructions = []
    for i in range(draw(st.integers(1, 12))):
        code, value = draw(st.sampled_from(TAME)), draw(st.sampled_from([-1.5, 0.25, 1.0]))
        value = draw(st.integers(0, len(ACTS) - 1)) if code == "act" else value
        last = len(operands) + i - 1
        instructions.append((code, draw(st.integers(0, last)), draw(st.integers(0, last)), value))
    return operands, instructions


@settings(max_examples=250)
@given(st.sampled_from(available()).map(library), programs(), st.sampled_from(tuple(TYPES)))
def test_chains_of_anything(lib, program, dtype):
    operands, instructions = program
    shape = torch.broadcast_shapes(*(t.shape for t in operands))
    y = lib.chain(operands, instructions, shape, dtype)
    exact = by_torch(operands, instructions).expand(shape)
    eps = torch.finfo(dtype).eps
    scale = 2.0 ** len(instructions)  # an error doubles in x + x
    torch.testing.assert_close(y.double(), exact, rtol=eps, atol=1e-6 * scale if dtype == torch.float32 else eps + 1e-6 * scale)


@pytest.mark.parametrize("count", [1, 3, 16, 17, 1023, 1024, 1025, 70_001])
@pytest.mark.parametrize("code", BINARY)
def test_binary_operations(lib, code, count):
    a, b = torch.randn(count), torch.randn(count)
    torch.testing.assert_close(lib.chain([a, b], [(code, 0, 1, 0)]), BINARY[code](a, b), rtol=0, atol=0)


@pytest.mark.parametrize("code", BINARY)
def test_binary_operations_on_special_values(lib, code):
    special = torch.tensor([0.0, -0.0, 1.0, -2.5, INF, -INF, NAN])
    a, b = special.repeat_interleave(7), special.repeat(7)
    assert torch.equal(lib.chain([a, b], [(code, 0, 1, 0)]).nan_to_num(7), BINARY[code](a, b).nan_to_num(7))


@pytest.mark.parametrize("code", ["add_scalar", "mul_scalar", "rsub_scalar", "rdiv_scalar", "max_scalar", "min_scalar"])
@pytest.mark.parametrize("value", [0.0, -1.75, INF])
def test_scalar_operations_on_special_values(lib, code, value):
    x = torch.tensor([0.0, 1.0, -2.5, INF, -INF, NAN])
    assert torch.equal(lib.apply(code, x, value).nan_to_num(7), UNARY[code](x, value).nan_to_num(7))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(4, 1009, 40), (40, 3001), (2, 64, 33, 17)])
def test_a_bias_a_gate_and_a_residual(lib, shape, dtype):
    # What stands after a linear layer: broadcast over rows, over columns, and not at all.
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    bias, gate = torch.randn(shape[-1]).to(dtype), torch.randn(shape[0], *[1] * (len(shape) - 1)).to(dtype)
    operands = [x, bias.view([1] * (len(shape) - 1) + [-1]), gate, residual, torch.tensor(0.5).view([1] * len(shape))]
    program = [("add", 0, 1, 0), ("act", 5, 0, ACTS.index("silu")), ("mul", 6, 2, 0), ("add", 7, 3, 0), ("mul", 8, 4, 0)]
    y, exact = lib.chain(operands, program, dtype=dtype), by_torch(operands, program)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=max(eps / 2, 1e-6), atol=1e-6)


def test_the_longest_chain(lib):
    operands = [torch.randn(2500) for _ in range(16)]
    program = [("add", i, i + 1, 0) for i in range(15)]  # all operands, and most results, are used again below
    program += [("max" if i % 2 else "min", 16 + i % 15, i % 16, 0) for i in range(30)]
    program += [("sub", 16 + i, 31 + i, 0) for i in range(19)]
    assert len(program) == 64
    torch.testing.assert_close(lib.chain(operands, program), by_torch(operands, program, torch.float32), rtol=0, atol=0)


def test_a_constant_outlives_the_block_that_uses_it_early(lib):
    operands = [torch.randn(5000), torch.tensor([1.5])]
    program = [("mul", 0, 1, 0), ("neg", 2, 0, 0), ("sub", 3, 0, 0)]
    torch.testing.assert_close(lib.chain(operands, program), -2.5 * operands[0])


def test_an_operand_used_twice_and_results_not_used(lib):
    x = torch.randn(100)
    program = [("exp", 0, 0, 0), ("mul", 0, 0, 0), ("add", 2, 2, 0)]
    torch.testing.assert_close(lib.chain([x], program), 2 * x * x)


def test_an_empty_chain_writes_nothing(lib):
    assert lib.chain([torch.empty(0, 3)], [("exp", 0, 0, 0)]).shape == (0, 3)


def test_calls_from_several_threads(lib):
    x, weight = torch.randn(2, 4096, 64), torch.randn(64)
    wide = torch.randn(700, 300)

    def work(_):
        return (
            lib.group_norm(x, 32, weight, None, 1e-5, "silu", True),
            lib.softmax(wide),
            lib.chain([wide, wide], [("mul", 0, 1, 0), ("act", 2, 0, 1)]),
            lib.copy(wide.flatten(), (300, 700), (1, 300)),
        )

    expected = work(0)
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(work, range(24)):
            assert all(torch.equal(a, b) for a, b in zip(made, expected))


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_any_number_of_threads(lib, threads):
    x = torch.randn(5, 64, 1009)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y = lib.group_norm(x.transpose(1, 2).contiguous(), 32, channels_last=True)
        z = lib.group_norm(x[:1, :3].contiguous().repeat(1, 1, 20), 3)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(y.transpose(1, 2), functional.group_norm(x, 32))
    torch.testing.assert_close(z, functional.group_norm(x[:1, :3].repeat(1, 1, 20), 3))
