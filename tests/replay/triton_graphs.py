"""Whole graphs with the kernels for CUDA, by Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend

from diffusers_oneflow.replay import cuda
from diffusers_oneflow.replay.cuda import attention
from diffusers_oneflow.replay.values import refs

from .test_graph import OnPlain, error, graph_of


class Interpreted(OnPlain):
    """The lowerings of a GPU, on the CPU."""

    def __init__(self):
        super().__init__()
        self.find, self.aside = cuda.TABLE.get, self.plain.aside


def check(graph, module, x):
    """Each of a graph's results is as near to float64 as torch's; the module is in float64 afterwards."""
    with torch.no_grad():
        stock, wide = module(x), module.double()(x.double())
    for made, mine, expected in zip(graph([x]), stock, wide):
        assert error(made, expected) <= max(1.5 * error(mine, expected), 1e-6)


class Layers(nn.Module):
    """Two residual layers of a transformer; what was added up is read again later, through a view too."""

    def __init__(self, early: bool, norm: type[nn.Module]):
        super().__init__()
        self.early = early
        self.first, self.second, self.third = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
        self.norms = nn.ModuleList([norm(16), norm(16)])

    def forward(self, x):
        h = self.first(x) + x
        before = torch.nn.functional.softmax(h, -1) if self.early else 0.0
        h = self.second(self.norms[0](h)) + h
        flat = h.flatten(0, 1)
        return self.third(self.norms[1](h)) + h + before, flat.sum(0)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("early", [False, True])
def test_a_norm_adds_the_residual_of_the_product_before_it(norm, early):
    torch.manual_seed(0)
    module, x = Layers(early, norm).eval(), torch.randn(2, 8, 16)
    graph = graph_of(module, x, device=Interpreted())
    taken = [s for s in graph.steps if "norm" in s.kernel and s.like.dim() == 4]
    assert len(taken) == (1 if early else 2)  # what is read before the norm comes must be there
    assert all(len(refs(ref.source.args)) == 2 for s in taken for ref in refs(s.args)[:1])
    check(graph, module, x)


class Narrow(nn.Module):
    """Norms of rows that are not the product's: of each head, and of two dimensions at once."""

    def __init__(self, bias: bool):
        super().__init__()
        self.heads, self.all = nn.Linear(16, 16, bias=bias), nn.Linear(16, 16, bias=bias)
        self.by_head, self.whole = nn.LayerNorm(4), nn.LayerNorm((8, 16))

    def forward(self, x):
        h = self.heads(x) + x
        g = self.all(x) + x
        return self.by_head(h.unflatten(-1, (4, 4))), h * 2, self.whole(g), g * 2


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_of_other_rows_takes_no_bias(bias):
    torch.manual_seed(0)
    module, x = Narrow(bias).eval(), torch.randn(2, 8, 16)
    graph = graph_of(module, x, device=Interpreted())
    assert sum("norm" in s.kernel and s.like.dim() > 3 and s.like.shape[0] == 2 for s in graph.steps) >= 1
    check(graph, module, x)


def test_attention_takes_what_torch_says_it_is_for(monkeypatch):
    asked = []
    fits = {b: lambda given, b=b: asked.append(b) or b == SDPBackend.FLASH_ATTENTION for b in attention._FITS}
    monkeypatch.setattr(attention, "_FITS", fits)
    q = torch.randn(1, 2, 4, 8)
    given = attention.SDPAParams(q, q, q, None, 0.0, False, False)
    assert attention.usable(given, True) == [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH] and len(asked) == 3
    assert attention.usable(given, False) == [SDPBackend.MATH]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width, rows", [(8, 4), (12, 4), (8, 5)])
def test_heads_and_masks_that_a_kernel_does_not_know_are_not_for_it(monkeypatch, causal, width, rows):
    monkeypatch.setattr(attention, "_FITS", dict.fromkeys(attention._FITS, lambda given: True))
    q, k = torch.randn(1, 2, rows, width), torch.randn(1, 2, 4, width)
    able = attention.usable(attention.SDPAParams(q, k, k, None, 0.0, causal, False), True)
    assert (SDPBackend.FLASH_ATTENTION in able) == (width == 8 and (not causal or rows == 4))
    assert (SDPBackend.CUDNN_ATTENTION in able) == (not causal or rows == 4)
    assert able[-2:] == [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 5, 7), (2, 1, 1, 7), (5, 7), (2, 1, 5, 1)])
@pytest.mark.parametrize("kind", [bool, float])
def test_a_bias_is_what_a_mask_does(shape, kind):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    mask = torch.randn(shape) if kind is float else (torch.rand(shape) > 0.4).index_fill_(-1, torch.tensor([0]), True)
    bias = attention.bias_of(mask, q, k)
    assert bias.shape == (2, 3, 5, 7) and bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in bias.stride()[:-1])
    made = attention._DIRECT[SDPBackend.MATH](q, k, v, bias, is_causal=False, scale=None)[0]
    torch.testing.assert_close(made, nn.functional.scaled_dot_product_attention(q, k, v, mask))


class Attention(nn.Module):
    """Of four heads."""

    def __init__(self, causal: bool):
        super().__init__()
        self.qkv, self.causal = nn.Linear(12, 36), causal

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (4, 3)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        made = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return made.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    torch.manual_seed(0)
    module, x = Attention(causal).eval(), torch.randn(2, 7, 12)
    graph = graph_of(module, x, device=Interpreted())
    with torch.no_grad():
        stock, wide = module(x), module.double()(x.double())
    assert error(graph([x])[0], wide) <= max(1.5 * error(stock, wide), 1e-6)
    assert [s.run.name for s in graph.steps if s.own] == ["math"]


class Parallel(nn.Module):
    """Attention and MLP side by side, joined for one layer; then each of two parts of every sequence has a layer of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(48, 24)
        self.image, self.text = nn.Linear(24, 16), nn.Linear(24, 16, bias=False)

    def forward(self, x):
        joined = self.out(torch.cat([self.first(x), self.second(x).tanh()], -1)) + torch.cat([x, x[..., :8]], -1)
        return self.image(joined[:, :4]), self.text(joined[:, 4:])


def test_columns_that_are_joined_and_rows_that_lie_apart_are_multiplied_where_they_are():
    torch.manual_seed(0)
    module, x = Parallel().eval(), torch.randn(2, 8, 16)
    graph = graph_of(module, x, device=Interpreted())
    assert sum("cat" in s.op for s in graph.steps) == 1 and not any("copy" in s.kernel for s in graph.steps)
    assert sum(s.kernel == "cublasLt" for s in graph.steps) == 6  # two for what is joined
    check(graph, module, x)


class Twice(nn.Module):
    """A layer of the same columns twice, and one of more parts than are multiplied one by one."""

    def __init__(self):
        super().__init__()
        self.layer, self.many = nn.Linear(32, 16), nn.Linear(64, 16)

    def forward(self, x):
        y = x.tanh()
        return self.layer(torch.cat([y, y], -1)), self.many(torch.cat([y, x, y * 2, x.sin()], -1))


def test_a_bias_is_added_once():
    torch.manual_seed(0)
    module, x = Twice().eval(), torch.randn(2, 8, 16)
    graph = graph_of(module, x, device=Interpreted())
    assert sum(s.kernel == "cublasLt" for s in graph.steps) == 3 and sum("cat" in s.op for s in graph.steps) == 1
    check(graph, module, x)


class Repeated(nn.Module):
    """A layer of rows that no matrix has: one row over and over, every other column, and three dimensions apart."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        wide = x.tanh()
        return self.layer(wide[:, :1].expand(-1, 6, -1)[..., :8]), self.layer(wide[..., ::2]), self.layer(wide[:, ::2, :8])


def test_rows_that_no_matrix_has_are_copied():
    torch.manual_seed(0)
    module, x = Repeated().eval(), torch.randn(3, 6, 16)
    graph = graph_of(module, x, device=Interpreted())
    check(graph, module, x)
