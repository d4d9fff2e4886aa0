"""Cases for Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py: against torch in float64, on the CPU."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from diffusers_oneflow.passes import native_ops
from diffusers_oneflow.replay.cuda import chains, light, norms
from diffusers_oneflow.replay.device import Plain
from diffusers_oneflow.replay.lowering import Lowered
from diffusers_oneflow.replay.values import Ref, meta

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SENTINEL = 77.0


def numbers(*shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def close(made, expected, dtype):
    """Computed in float32 and rounded once: half a unit in the last place, and float32's own error."""
    bound = torch.finfo(dtype).eps * expected.abs() + 4e-6 * expected.abs().max()
    assert ((made.double() - expected).abs() <= bound).all(), (made.double() - expected).abs().max()


class Recorder(Lowered):
    """Takes the one step that a lowering adds."""

    def __init__(self):
        self.steps = []


class Node:
    """As much of a node as a lowering asks for."""

    target = "test"

    def __init__(self, shape, dtype):
        self.meta = {"val": torch.empty(tuple(shape), dtype=dtype, device="meta")}


def filled(compute, shape, dtype, *args):
    """What ``compute(out, *args)`` makes, in the middle of memory that must stay as it was."""
    padded = torch.full((math.prod(shape) + 64,), SENTINEL, dtype=dtype)
    out = padded[32:-32].view(shape)
    compute(out, *args)
    assert (padded[:32] == SENTINEL).all() and (padded[-32:] == SENTINEL).all()
    return out


def run(lowering, shape, dtype, *args):
    """What a lowering's step makes."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    given = tree_map_only(torch.Tensor, lambda a: Ref(a, meta(a)), list(args))
    recorder = Recorder()
    lowering(recorder, Node(shape, dtype), *given)
    assert len(recorder.steps) == 1 and recorder.steps[0].kernel.startswith(("triton", "torch where"))
    step = recorder.steps[0]
    assert tensors
    return filled(step.run, shape, dtype, *(r.of(r.source) if isinstance(r, Ref) else r for r in step.args))


def tiles_of(shape, groups):
    """What a GPU takes; programs whose columns begin and end within groups; parts that are read at once and in several steps."""
    positions, channels = math.prod(shape[1:-1]), shape[-1]
    third = max(1, positions // 3)
    parts = -(-positions // third)
    return [
        norms.Tiles.of(positions, channels, channels // groups),
        norms.Tiles(8, 1, positions, light.power(positions)),
        norms.Tiles(4, parts, third, 2),
        norms.Tiles(light.power(channels), parts, third, light.power(third)),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", [((2, 5, 7, 30), 3), ((1, 2, 1, 8), 8), ((2, 40, 4, 20), 4), ((3, 4, 4, 10), 1)])
@pytest.mark.parametrize("which", [None, *range(4)])
def test_group_norm(shape, groups, which, dtype):
    x, shift, w, b = (
        numbers(*shape, dtype=dtype, scale=3.0) + 10,
        numbers(shape[0], 2 * shape[-1], dtype=dtype, seed=3)[:, 3 : 3 + shape[-1]],
        numbers(shape[-1], dtype=dtype, seed=1),
        numbers(shape[-1], dtype=dtype, seed=2),
    )
    out = torch.full_like(x, SENTINEL)
    norm = norms.GroupNorm(groups, 1e-5, "silu")
    if which is None:
        norm(out, x, shift, w, b)  # each group by itself
    else:
        norm.run(tiles_of(shape, groups)[which], out, x, shift, w, b)
    moved = x.double() + shift.double().view(shape[0], *[1] * (len(shape) - 2), -1)
    wide = F.silu(F.group_norm(moved.movedim(-1, 1), groups, w.double(), b.double(), 1e-5)).movedim(1, -1)
    close(out, wide, dtype)


@pytest.mark.parametrize("which", [None, *range(4)])
def test_group_norm_without_weights_far_from_zero(which):
    x = numbers(1, 16, 16, 12) + 1000.0
    out = torch.empty_like(x)
    norm = norms.GroupNorm(3, 1e-6, "none")
    if which is None:
        norm(out, x, None, None, None)
    else:
        norm.run(tiles_of(x.shape, 3)[which], out, x, None, None, None)
    expected = F.group_norm(x.double().movedim(-1, 1), 3, None, None, 1e-6).movedim(1, -1)
    # The input's own rounding is what is left.
    assert (out.double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 5, 320, 1025])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(columns, bias, dtype):
    x, w = numbers(7, columns, dtype=dtype), numbers(columns, dtype=dtype, seed=1)
    b = numbers(columns, dtype=dtype, seed=2) if bias else None
    made = run(norms.layer_norm, x.shape, dtype, x, [columns], w, b, 1e-5)
    close(made, F.layer_norm(x.double(), [columns], w.double(), None if b is None else b.double(), 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype):
    x, w = numbers(6, 33, dtype=dtype), numbers(33, dtype=dtype, seed=1)
    made = run(norms.rms_norm, x.shape, dtype, x, [33], w, 1e-6)
    close(made, F.rms_norm(x.double(), [33], w.double(), 1e-6), dtype)


@pytest.mark.parametrize("act", native_ops.ACTIVATIONS)
@pytest.mark.parametrize("gate_first", [True, False])
def test_gated(act, gate_first):
    x = numbers(5, 2 * 37, scale=2.0)
    made = run(light.gated, (5, 37), torch.float32, x, act, gate_first)
    close(made, native_ops.gated(x.double(), act, gate_first), torch.float32)


def test_layer_norm_of_constant_rows():
    made = run(norms.layer_norm, (4, 6), torch.float32, torch.full((4, 6), 0.3), [6], None, None, 1e-5)
    assert (made == 0).all()


def test_one_value_under_a_mask():
    x, mask = numbers(3, 5), numbers(3, 5, seed=1) > 0
    value = torch.tensor(7.0)
    expected = x.masked_fill(mask, 7.0)
    assert torch.equal(run(light.masked_fill, (3, 5), torch.float32, x, mask, value), expected)
    assert torch.equal(run(light.index_put, (3, 5), torch.float32, x, [mask], value.view(1)), expected)
    rows = mask[:, 0]
    assert torch.equal(run(light.index_put, (3, 5), torch.float32, x, [rows], value), x.masked_fill(rows[:, None], 7.0))


@pytest.mark.parametrize("act", native_ops.ACTIVATIONS)
@pytest.mark.parametrize("act_first", [True, False])
def test_the_end_of_a_product(act, act_first):
    x, bias, residual = numbers(9, 35), numbers(35, seed=1), numbers(9, 35, seed=2)
    f = native_ops.ACTIVATIONS[act]
    wide = x.double() + bias.double()
    expected = f(wide) + residual.double() if act_first else f(wide + residual.double())
    out = x.clone()
    light.finish(out, out, bias, residual, act, act_first)
    close(out, expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_of_operands_that_broadcast(dtype):
    a, b, c = (
        numbers(2, 3, 5, 7, dtype=dtype).abs() + 1,
        numbers(5, 1, dtype=dtype, seed=1),
        numbers(3, 7, 5, dtype=dtype, seed=2),
    )
    c = c.transpose(1, 2)  # not dense
    instructions = [
        ("add", 0, 1, 0.0), ("mul", 3, 2, 0.0), ("act", 4, 4, "silu"), ("add_scalar", 5, 5, 0.5), ("max_scalar", 6, 6, 0.25),
        ("div", 7, 0, 0.0), ("pow_scalar", 8, 8, 2.0),
    ]  # fmt: skip
    run = chains.Chain((2, 3, 5, 7), [a.shape, b.shape, c.shape], [a.stride(), b.stride(), c.stride()], instructions)
    made = torch.empty(2, 3, 5, 7, dtype=dtype)
    run(made, a, b, c)
    expected = native_ops.chain([a.double(), b.double(), c.double()], instructions, torch.float64)
    bound = (torch.finfo(dtype).eps + 4e-6) * expected.abs()
    assert ((made.double() - expected).abs() <= bound + 1e-30).all()


@pytest.mark.parametrize("code, value", [("pow_scalar", 3.0), ("rsub_scalar", 1.5), ("rdiv_scalar", 2.0), ("min_scalar", 0.3)])
def test_a_chain_with_a_number(code, value):
    x = numbers(11) + 3
    run = chains.Chain((11,), [x.shape], [x.stride()], [(code, 0, 0, value)])
    out = torch.empty(11)
    run(out, x)
    close(out, native_ops.chain([x.double()], [(code, 0, 0, value)], torch.float64), torch.float32)


def test_what_is_not_a_number_stays_so():
    x = torch.tensor([float("nan"), -1.0, 2.0])
    for code in ("max_scalar", "min_scalar"):
        instructions = [(code, 0, 0, 0.5), ("act", 1, 1, "relu")]
        out = torch.empty(3)
        chains.Chain((3,), [x.shape], [x.stride()], instructions)(out, x)
        torch.testing.assert_close(out, native_ops.chain([x], instructions, torch.float32), equal_nan=True)


class Modern(torch.nn.Module):
    """A step of a UNet in small: an embedded timestep, a prompt, self- and cross-attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.GroupNorm(4, 16)
        self.time_emb_proj = torch.nn.Linear(8, 16)
        self.attn1, self.attn2 = torch.nn.Module(), torch.nn.Module()
        for layer, width in ((self.attn1, 16), (self.attn2, 6)):
            layer.to_q = torch.nn.Linear(16, 16, bias=False)
            layer.to_k, layer.to_v = (torch.nn.Linear(width, 16, bias=False) for _ in range(2))
            layer.to_out = torch.nn.Linear(16, 16)
        self.gate, self.down = torch.nn.Linear(16, 64), torch.nn.Linear(32, 16)

    def attend(self, layer, x, other):
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (layer.to_q(x), layer.to_k(other), layer.to_v(other)))
        return layer.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) + x

    def forward(self, sample, time, prompt):
        h = self.conv(sample) + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = F.silu(self.norm(h))
        x = h.flatten(2).transpose(1, 2)
        x = self.attend(self.attn2, self.attend(self.attn1, x, x), prompt)
        a, b = self.gate(x).chunk(2, -1)
        return (self.down(a * F.gelu(b)) + x).transpose(1, 2).unflatten(-1, h.shape[2:]) + h


def test_a_model_by_the_lowerings_of_a_gpu(monkeypatch):
    """All but the libraries of the GPU: their places are taken by torch's ops."""
    from diffusers_oneflow.replay import cuda
    from diffusers_oneflow.replay.layout import Layout

    from .test_graph import graph_of

    class Interpreted(Plain):
        def find(self, op):
            return cuda.TABLE.get(op)

    torch.manual_seed(0)
    module = Modern().eval().requires_grad_(False)
    given = [numbers(2, 3, 8, 8), numbers(2, 8, seed=1), numbers(2, 5, 6, seed=2)]
    expected = module.double()(*(t.double() for t in given))
    stock = module.float()(*given)
    Layout(module)
    graph = graph_of(module, *given, device=Interpreted("cpu"))

    def error(made):
        return ((made.double() - expected).norm() / expected.norm()).item()

    assert error(graph(given)[0]) <= max(1.5 * error(stock), 1e-6)
    assert error(graph([given[0], given[1] + 1, given[2]])[0]) > 1e-3
    kernels = {op: dict(counts) for op, counts in graph.kernels.items()}
    # q, k and v of the first attention are one product, k and v of the second another; the norm adds the timestep.
    assert kernels["oneflow.linear.default"]["cublasLt"] == 8
    assert not any("unflatten" in op for op in kernels)
    (norm,) = [step for step in graph.steps if step.op == "oneflow.group_norm.default"]
    assert {tuple(ref.shape) for ref in norm.args[:2]} == {(2, 8, 8, 16), (2, 16)}
    assert len(graph._groups) == 2
    assert all(step.planned == (1,) for step in graph.steps if step.op == "oneflow.attention.default")


def chained(x, *instruction):
    """One instruction of dense numbers."""
    made = torch.empty_like(x)
    chains.Chain(tuple(x.shape), [tuple(x.shape)], [x.stride()], [instruction])(made, x)
    return made.double()


@pytest.mark.parametrize("size", [1e-6, 0.1, 0.2499, 0.2501, 3.0, 30.0])
def test_tanh_keeps_its_digits_near_0(size):
    x = numbers(1000) * size
    expected = x.double().tanh()
    assert ((chained(x, "act", 0, 0, "tanh") - expected).abs() <= 1e-6 * expected.abs()).all()


@pytest.mark.parametrize("code, exact", [("sqrt", torch.sqrt), ("rsqrt", torch.rsqrt)])
def test_roots_of_the_smallest_numbers(code, exact):
    x = torch.tensor([1e-40, 3e-39, 1e-38, 2.0])
    assert torch.allclose(chained(x, code, 0, 0, None), exact(x.double()), rtol=1e-6, atol=0)
