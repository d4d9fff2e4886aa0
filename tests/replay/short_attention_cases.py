"""Cases of attention to few keys, for Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py."""

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from torch import nn
from triton.runtime import interpreter

from diffusers_oneflow.replay.cuda import attention, short_attention

from .test_graph import graph_of
from .triton_cases import filled, numbers
from .triton_graphs import Interpreted

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def multiplied_as_numbers(monkeypatch):
    """The interpreter multiplies the bits of bfloat16 as integers."""
    builder, narrow = interpreter.InterpreterBuilder, interpreter._get_np_dtype(tl.bfloat16)
    multiply = builder.create_dot

    def create_dot(self, a, b, *others):
        if a.data.dtype == narrow:
            a, b = (self.create_fp_ext(t, tl.block_type(tl.float32, list(t.data.shape))) for t in (a, b))
        return multiply(self, a, b, *others)

    monkeypatch.setattr(builder, "create_dot", create_dot)


def given(rows, keys, heads, width, dtype=torch.float16, images=2, gap=0):
    """q, k and v; with a gap as parts of products that make more."""
    q = numbers(images, rows, heads * width + gap, dtype=dtype)[..., gap:]
    both = numbers(images, keys, 2 * heads * width + gap, dtype=dtype, seed=1)
    return q, both[..., : heads * width], both[..., heads * width : 2 * heads * width]


def exact(q, k, v, heads, scale=None):
    q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def off(made, expected):
    return ((made.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("number", range(len(short_attention.CONFIGS)))
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "rows, keys, heads, width, scale",
    [
        (130, 77, 3, 64, None),
        (64, 77, 2, 40, 0.3),
        (1, 1, 1, 8, None),
        (129, 128, 2, 80, None),
        (70, 33, 1, 128, 1.0),
        (200, 16, 2, 24, None),
    ],
)
def test_it_is_right(number, dtype, rows, keys, heads, width, scale):
    q, k, v = given(rows, keys, heads, width, dtype)

    def fill(out):
        short_attention.attention(number, out, q, k, v, heads, scale)

    made = filled(fill, q.shape, dtype)
    # What keys weigh is rounded, and the result.
    assert off(made, exact(q, k, v, heads, scale)) < 1.2 * torch.finfo(dtype).eps


def test_keys_beyond_the_last_weigh_nothing():
    q, k, v = given(40, 77, 2, 16, gap=8)
    assert not q.is_contiguous() and not k.is_contiguous()
    out = torch.empty(q.shape, dtype=q.dtype)
    short_attention.attention(0, out, q, k[:, :20], v[:, :20], 2, None)
    assert off(out, exact(q, k[:, :20], v[:, :20], 2)) < 2e-3
    k[:, 20:], v[:, 20:] = float("nan"), float("inf")
    again = torch.empty_like(out)
    short_attention.attention(0, again, q, k[:, :20], v[:, :20], 2, None)
    assert torch.equal(out, again)


def test_what_is_not_a_number_stays_so():
    q, k, v = given(20, 9, 2, 16, images=1)
    q[0, 3, :16], v[0, :, 20] = float("nan"), float("nan")
    out = torch.empty(q.shape, dtype=q.dtype)
    short_attention.attention(1, out, q, k, v, 2, None)
    expected = exact(q, k, v, 2).isnan()
    assert torch.equal(out.isnan(), expected) and expected.sum() == 16 + 20


@pytest.mark.parametrize("keys", range(1, short_attention.MOST + 1))
def test_few_places_for_keys_stay_empty(keys):
    first, rest = short_attention.parts(keys)
    assert keys <= first + rest <= max(16, 2 * keys) and rest < first and rest in (0, 16, 32)


@pytest.mark.parametrize(
    "kind",
    ["", "small", "mask", "causal", "many keys", "wide heads", "float32", "another dtype", "other images", "rows that lie apart"],
)
def test_what_it_is_for(kind, monkeypatch):
    monkeypatch.setattr(short_attention, "LEAST", 2 * 32 * 64)
    q, k, v = given(31 if kind == "small" else 32, 129 if kind == "many keys" else 77, 4, 136 if kind == "wide heads" else 16)
    if kind == "float32":
        q, k, v = q.float(), k.float(), v.float()
    elif kind == "another dtype":
        v = v.bfloat16()
    elif kind == "other images":
        k, v = k[:1], v[:1]
    elif kind == "rows that lie apart":
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    mask = torch.zeros(1, 1, 1, 77, dtype=torch.float16) if kind == "mask" else None
    assert short_attention.fits(q, k, v, mask, 4, kind == "causal") is (kind == "")


class Layer(nn.Module):
    """A projection, and attention of it to a prompt."""

    def __init__(self):
        super().__init__()
        self.q, self.kv = nn.Linear(64, 64), nn.Linear(24, 128)

    def forward(self, x, prompt):
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in (self.q(x), *self.kv(prompt).chunk(2, -1)))
        return (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),)


def test_what_prepares_a_graph_compiles_it(monkeypatch):
    monkeypatch.setattr(short_attention, "LEAST", 1)
    launched = []
    monkeypatch.setattr(short_attention, "attention", lambda number, *args: launched.append(number))
    torch.manual_seed(0)
    given = numbers(2, 48, 64, dtype=torch.float16), numbers(2, 20, 24, dtype=torch.float16)
    graph = graph_of(Layer().half().eval(), *given, device=Interpreted())
    *_, kernels = graph._preparations()
    launched.clear()
    for launch in kernels:
        launch()
    assert launched == [*range(len(short_attention.CONFIGS))]


def test_it_is_one_of_the_ways(monkeypatch):
    monkeypatch.setattr(short_attention, "LEAST", 1)
    q, k, v = given(48, 20, 4, 16)
    ways = attention.Ways(4, False, None)
    found = ways._ways(q, k, v, None)
    names = [name for _, name in found]
    # After the likeliest, and never what is kept for where nothing else works.
    assert sum("triton" in name for name in {*names}) == len(short_attention.CONFIGS) and names[-1] == "math"
    made = [run(q, k, v, None) for run, _ in found]
    assert all(off(one, exact(q, k, v, 4)) < 2e-3 and one.is_contiguous() for one in made)
    launched = []
    monkeypatch.setattr(short_attention, "attention", lambda number, *args: launched.append(number))
    ways.kernels(None, q, k, v, None)
    assert launched == [*range(len(short_attention.CONFIGS))]
    attention.Ways(4, True, None).kernels(None, q, k, v, None)
    assert launched == [*range(len(short_attention.CONFIGS))]
