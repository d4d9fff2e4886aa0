"""Row norms and what is computed with them, by Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py."""

import pytest
import torch
from torch import nn

from diffusers_oneflow.replay.cuda import chains, row_norms
from diffusers_oneflow.replay.cuda.row_norms import Joined, RowNorm
from diffusers_oneflow.replay.cuda.strides import Rows, Spread
from diffusers_oneflow.replay.layout import Layout
from diffusers_oneflow.replay.values import Ref, meta

from .test_graph import error, graph_of
from .triton_cases import DTYPES, close, filled, numbers
from .triton_graphs import Interpreted


def turned(x):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-b, a], -1).flatten(-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("busy, rows", [(1024, 1), (1, 16), (1, 37)])
@pytest.mark.parametrize("columns", [6, 33, 296, 320, 1030])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_a_modulation_of_each_image(monkeypatch, columns, busy, rows, rms, gated, dtype):
    monkeypatch.setattr(row_norms, "_BUSY", busy)  # 1: several rows for each program, if a few make it busy
    b = 3
    x, residual = numbers(b, rows, columns, dtype=dtype), numbers(b, rows, columns, dtype=dtype, seed=1) + 3
    scale, shift, gate = numbers(b, 6 * columns, dtype=dtype, seed=2).chunk(6, 1)[1:4]
    norm = RowNorm(None, b * rows, columns, 1e-6, rms, Rows.dense(3, columns), rows, b, 1.0)
    shape = (2, *x.shape) if gated else x.shape
    made = filled(norm, shape, dtype, x, None, *((residual, gate) if gated else (None, None)), None, None, scale, shift)
    x, residual, scale, shift, gate = (t.double() for t in (x, residual, scale, shift, gate))
    total = residual + gate[:, None] * x if gated else x
    normed = nn.functional.rms_norm(total, [columns], None, 1e-6) if rms else nn.functional.layer_norm(total, [columns], eps=1e-6)
    expected = normed * (1 + scale[:, None]) + shift[:, None]
    if gated:
        close(made[0], total, dtype)
    # The factor, too, is rounded once.
    close(made[1] if gated else made, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [64, 65])
@pytest.mark.parametrize("columns", [296, 320])
@pytest.mark.parametrize("rms", [False, True])
def test_rows_in_two_blocks(monkeypatch, columns, rows, rms, dtype):
    monkeypatch.setattr(row_norms, "_BUSY", 1)
    assert row_norms._tiles(rows, columns) == (4, 1, 256, 64)
    x, residual = numbers(rows, columns, dtype=dtype), numbers(rows, columns, dtype=dtype, seed=1) + 3
    plus, weight, bias, cos, sin = (numbers(columns, dtype=dtype, seed=seed) for seed in range(2, 7))
    norm = RowNorm(None, rows, columns, 1e-6, rms, Rows.dense(2, columns), rows, 1, 0.0, True)
    made = filled(norm, (2, rows, columns), dtype, x, plus, residual, None, weight, bias, cos[None], sin[None])
    x, plus, residual, weight, bias, cos, sin = (t.double() for t in (x, plus, residual, weight, bias, cos, sin))
    total = x + plus + residual
    normed = nn.functional.rms_norm(total, [columns], None, 1e-6) if rms else nn.functional.layer_norm(total, [columns], eps=1e-6)
    normed = normed * weight + bias
    close(made[0], total, dtype)
    close(made[1], normed * cos + turned(normed) * sin, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [2, 6, 128])
def test_a_rotation_of_normed_heads(columns, dtype):
    b, n, heads = 2, 5, 3
    # As a part of a product that makes more, and as attention would have it.
    x = numbers(b, n, 3 * heads * columns, dtype=dtype)[..., heads * columns : 2 * heads * columns].unflatten(
        -1, (heads, columns)
    )
    x = x.transpose(1, 2)
    weight, cos, sin = numbers(columns, dtype=dtype, seed=1), numbers(n, columns, seed=2), numbers(n, columns, seed=3)
    source = Rows.of(x)
    assert source.order == (0, 2, 1, 3)
    norm = RowNorm(None, b * n * heads, columns, 1e-6, True, source, heads, n, 0.0, True)
    made = filled(norm, (b, n, heads, columns), dtype, x, None, None, None, weight, None, cos, sin).transpose(1, 2)
    normed = nn.functional.rms_norm(x.double(), [columns], weight.double(), 1e-6)
    close(made, normed * cos.double() + turned(normed) * sin.double(), dtype)


@pytest.mark.parametrize("heads", [3, 1])
@pytest.mark.parametrize("sizes", [(2, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize("b", [2, 1])
def test_norms_that_write_side_by_side(b, sizes, heads):
    columns = 8
    xs = [numbers(b, n, heads, columns, seed=n) for n in sizes]
    weights = [numbers(columns, seed=i) for i in (7, 8)]
    cos, sin = numbers(7, columns, seed=3), numbers(7, columns, seed=4)
    norms, given, start = [], [], 0
    for x, weight, n in zip(xs, weights, sizes):
        norms.append(RowNorm(None, b * n * heads, columns, 1e-6, True, Rows.of(x), heads, n, 0.0, True))
        given.append((x, None, None, None, weight, None, cos[start : start + n], sin[start : start + n]))
        start += n
    made = filled(Joined(tuple(norms), sizes, 1), (b, 7, heads, columns), torch.float32, *given)
    both = [nn.functional.rms_norm(x.double(), [columns], w.double(), 1e-6) for x, w in zip(xs, weights)]
    normed = torch.cat(both, 1)
    close(made, normed * cos[:, None].double() + turned(normed) * sin[:, None].double(), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_of_pairs_turned(dtype):
    x, cos, sin = numbers(2, 3, 5, 6, dtype=dtype), numbers(3, 1, 6, seed=1), numbers(3, 1, 6, seed=2)
    x = x.transpose(0, 1)  # not dense
    instructions = [("mul", 0, 1, 0.0), ("mul", 2, 3, 0.0), ("add", 4, 5, 0.0)]
    read = [x, cos[:, None], x, sin[:, None]]
    made = torch.empty(x.shape, dtype=dtype)
    chains.Chain(tuple(x.shape), [t.shape for t in read], [t.stride() for t in read], instructions, [2])(made, *read)
    close(made, x.double() * cos[:, None].double() + turned(x.double()) * sin[:, None].double(), dtype)


def test_where_rows_lie():
    x = torch.empty(2, 5, 3, 8)
    assert Rows.of(x) == Rows((0, 1, 2, 3), 1, 8, 0)
    assert Rows.of(torch.empty(2, 5, 30)[..., :10]) == Rows((0, 1, 2), 1, 30, 0)
    assert Rows.of(torch.empty(2, 5, 60)[..., 24:48].unflatten(-1, (3, 8))) == Rows((0, 1, 2, 3), 3, 60, 8)
    assert Rows.of(x.transpose(1, 2)) == Rows((0, 2, 1, 3), 1, 8, 0)
    assert Rows.of(x.transpose(2, 3)) is None
    assert Rows.of(torch.empty(2, 9, 5, 3, 8)[:, ::2, ::2]) is None


@pytest.mark.parametrize(
    "operand, expected",
    [
        (torch.empty(2, 48)[:, 8:16].unsqueeze(1), (5, 2, 48)), (torch.empty(8), (1, 1, None)),
        (torch.empty(1, 1, 8), (1, 1, None)), (torch.empty(4, 5, 8)[::2, ::2][:, :1], (5, 2, 80)),
        (torch.empty(5, 8), (1, 5, 8)), (torch.empty(2, 5, 8), (1, 10, 8)), (torch.empty(2, 5, 24)[..., 8:16], (1, 10, 24)),
        (torch.empty(2, 1, 1), None), (torch.empty(8, 2).t().unsqueeze(1), None),
        (torch.empty(2, 9, 8)[:, :5], None), (torch.empty(3, 1, 8), None),
    ],
)  # fmt: skip
def test_how_an_operand_repeats(operand, expected):
    found = Spread.of(Ref(operand, meta(operand)), (2, 5, 8), range(3))
    if expected is None:
        assert found is None
    else:
        stride = found.ref.like.stride(0) if found.period > 1 else None
        assert (found.per, found.period, stride) == expected and tuple(found.ref.shape) == (found.period, 8)


class AdaNorm(nn.Module):
    """Two layers of a transformer that the timestep modulates, for two streams."""

    def __init__(self, width: int = 16, kind: str = "plain"):
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.ModuleList([nn.Linear(width, 6 * width) for _ in range(2)])
        self.first = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.second = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.last = nn.Linear(width, width)

    def forward(self, x, time):
        for modulation, first, second in zip(self.modulation, self.first, self.second):
            shift, scale, gate, shift_2, scale_2, gate_2 = modulation(time).chunk(6, 1)
            normed = self.norm(x)
            made = first(normed * (1 + scale[:, None]) + shift[:, None])
            if self.kind == "read":  # the norm, by something else as well
                made = made + torch.softmax(normed, -1)
            x = x + gate[:, None] * made
            before = torch.softmax(x, -1) if self.kind == "early" else None  # the sum, before it is normed
            x = x + gate_2[:, None] * second(self.norm(x) * (1 + scale_2[:, None]) + shift_2[:, None])
            x = x if before is None else x + before.mean(1, keepdim=True)
        return self.last(x), x.flatten(0, 1).sum(0)


def kernels(graph):
    return [s.kernel for s in graph.steps if s.kernel.startswith("triton")]


def check(module, graph, given):
    with torch.no_grad():
        stock, wide = module(*given), module.double()(*(t.double() for t in given))
        module.float()
    stock, wide = ((t,) if isinstance(t, torch.Tensor) else t for t in (stock, wide))
    for made, mine, expected in zip(graph(list(given)), stock, wide):
        assert error(made, expected) <= max(1.5 * error(mine, expected), 1e-6)


@pytest.mark.parametrize("kind, modulated, two, chain", [("plain", 4, 3, 1), ("early", 4, 0, 6), ("read", 2, 3, 5)])
def test_modulations_and_gates_are_part_of_the_norm(kind, modulated, two, chain):
    torch.manual_seed(0)
    module, given = AdaNorm(kind=kind).eval(), (torch.randn(2, 12, 16), torch.randn(2, 16))
    graph = graph_of(module, *given, device=Interpreted())
    names = kernels(graph)
    assert names.count("triton layer norm, modulated") == modulated
    assert sum("norm" in s.kernel and s.like.dim() == 4 for s in graph.steps) == two
    assert names.count("triton chain") <= chain
    check(module, graph, given)
    check(module, graph, [t + 1 for t in given])


def test_a_row_count_that_is_not_aligned_keeps_its_chains():
    module, given = AdaNorm(width=18).eval(), (torch.randn(2, 5, 18), torch.randn(2, 18))
    graph = graph_of(module, *given, device=Interpreted())
    assert kernels(graph).count("triton layer norm, modulated") == 4
    assert not any("norm" in s.kernel and s.like.dim() == 4 for s in graph.steps)
    check(module, graph, given)


class Modulated(nn.Module):
    """Other modulations: of a table, of all tokens, of rows that do not follow each other, and some that are none."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.table = kind, nn.Parameter(torch.randn(1, 2, 8))

    def forward(self, x, y):
        normed = nn.functional.rms_norm(x, [8], None, 1e-6)
        scale, shift = self.table.unbind(1)
        if self.kind == "table":
            return normed * (1 + scale) + shift
        if self.kind == "scale":
            return (y[:, :1, :8] + 1) * normed
        if self.kind == "tokens":
            return normed * (y[..., :8] + 1) + y[..., 8:]
        if self.kind == "batch of one stream":
            return normed * y[:1, :1, :8] + y[:, :1, 8:]
        if self.kind == "wrong order":
            return (normed + y[:, :1, :8]) * y[:, :1, 8:]
        if self.kind == "square":
            return normed * normed + y[:, :1, 8:]
        if self.kind == "two periods":
            return normed * y[:, :1, :8] + y[:1, :, 8:]
        if self.kind == "columns":
            return normed * y[:, :, :1]
        return normed * torch.softmax(y[:, :1, :8], -1) + shift  # made after the norm


@pytest.mark.parametrize(
    "kind, taken",
    [
        ("table", True), ("scale", True), ("tokens", True), ("batch of one stream", True),
        ("wrong order", False), ("square", False), ("two periods", False), ("columns", False), ("later", False),
    ],
)  # fmt: skip
def test_modulations_of_other_shapes(kind, taken):
    torch.manual_seed(0)
    module, given = Modulated(kind).eval(), (torch.randn(3, 5, 8), torch.randn(3, 5, 16))
    graph = graph_of(module, *given, device=Interpreted())
    assert any("modulated" in name for name in kernels(graph)) == taken
    check(module, graph, given)


class Rotary(nn.Module):
    """Queries and keys as Flux has them: normed by head, those of a text and of an image put together, rotated."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16) for _ in range(3))
        self.text, self.norm, self.other = nn.Linear(16, 16), nn.RMSNorm(8, eps=1e-6), nn.RMSNorm(8, eps=1e-6)

    def turn(self, x, cos, sin):
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        other = torch.stack([imaginary, -real] if self.kind == "backwards" else [-imaginary, real], -1).flatten(3)
        return (x.float() * cos[None, :, None] + other.float() * sin[None, :, None]).to(x.dtype)

    def forward(self, x, text, cos, sin):
        q, k, v, t = (
            layer(y).unflatten(-1, (2, 8)) for layer, y in zip((self.to_q, self.to_k, self.to_v, self.text), (x, x, x, text))
        )
        n = text.shape[1]
        if self.kind != "raw":
            q, k, t = self.norm(q), self.norm(k), self.other(t)
        q = self.turn(torch.cat([t, q], 1), cos, sin)
        k = self.turn(k, cos[n:], sin[n:])
        made = nn.functional.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
        return made.transpose(1, 2).flatten(2) + (t.flatten(2).sum() if self.kind == "read" else 0)


@pytest.mark.parametrize(
    "kind, single, joined, stacks", [("", 1, 1, 0), ("raw", 0, 0, 0), ("read", 1, 0, 0), ("backwards", 0, 0, 2)]
)
def test_rotations_are_part_of_the_norm(kind, single, joined, stacks):
    torch.manual_seed(0)
    module = Rotary(kind).eval()
    Layout(module)
    given = (torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(8, 8), torch.randn(8, 8))
    graph = graph_of(module, *given, device=Interpreted())
    # The norms read queries and keys where one product with the values has them.
    assert graph.kernels["oneflow.linear.default"] == ({"cublasLt": 4} if kind == "raw" else {"cublasLt": 2})
    names = kernels(graph)
    assert names.count("triton rms norm, rotated") == single
    assert names.count("triton rms norms, joined, rotated") == joined
    assert sum(s.op == "aten.stack.default" for s in graph.steps) == stacks
    check(module, graph, given)
