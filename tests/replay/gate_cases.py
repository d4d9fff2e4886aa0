"""Cases of products that are gated in one kernel, for Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py.

The kernel is quack's, and what stands for it is in conftest.py.
"""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_oneflow.replay.cuda import cute_ahead, gates, quack

from .test_graph import graph_of
from .triton_cases import numbers
from .triton_graphs import Interpreted, check


class Product:
    """What cuBLASLt would do."""

    def __init__(self, out, x, weight, bias, residual, act):
        assert residual is None and act == "none" and out.shape == (1, x.shape[1], len(weight)) and len(x) == 1
        self.bias = bias

    def __call__(self, number, out, x, weight, residual):
        out.copy_(F.linear(x, weight, self.bias))


@pytest.mark.parametrize("act", quack.ACTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_ways_compute_the_same(package, act, bias, dtype, monkeypatch):
    x, weight = numbers(2, 32, 16, dtype=dtype), numbers(128, 16, dtype=dtype, seed=1, scale=0.3)
    given = numbers(128, dtype=dtype, seed=2) if bias else None
    out = torch.full((2, 32, 64), 77.0, dtype=dtype)
    a, b = F.linear(x.double(), weight.double(), None if given is None else given.double()).chunk(2, -1)
    expected = a * (F.gelu(b) if act == "gelu" else F.silu(b))
    monkeypatch.setattr(gates.cublaslt, "Product", Product)
    args = (out, x, weight, given, None if given is None else given.float())
    ways = gates.Ways(act)._ways(*args)
    for run, _ in ways:
        run(out.fill_(77.0), *args[1:])
        # By itself a product rounds its halves.
        assert ((out.double() - expected).norm() / expected.norm()).item() < 2 * torch.finfo(dtype).eps
    names = ["quack", "quack", "cublasLt, triton gated", "cublas, triton gated"]
    assert [name for _, name in ways] == names and len(set(package)) == 2
    off = numbers(1 + weight.numel(), dtype=dtype)[1:].view(weight.shape)
    assert [name for _, name in gates.Ways(act)._ways(*args[:2], off, *args[3:])] == names[2:]


class Feed(nn.Module):
    """As diffusers' GEGLU has it, between layers."""

    def __init__(self, width=128, bias=True):
        super().__init__()
        self.first, self.wide = nn.Linear(16, 16), nn.Linear(16, width, bias=bias)

    def forward(self, x):
        a, b = self.wide(self.first(x)).chunk(2, -1)
        return (a * F.gelu(b),)


def kernels_of(graph):
    return {kernel for counts in graph.kernels.values() for kernel in counts}


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_layer_is_one_step(package, bias):
    torch.manual_seed(0)
    module, x = Feed(bias=bias).eval().to(torch.bfloat16), torch.randn(2, 32, 16, dtype=torch.bfloat16)
    graph = graph_of(module, x, device=Interpreted())
    (step,) = [s for s in graph.steps if s.kernel == "quack"]
    assert tuple(step.like.shape) == (2, 32, 64) and not any(s.kernel == "triton gated" for s in graph.steps)
    *_, own, wide = step.args
    assert (own is None, wide is None) == (not bias, not bias)
    if bias:
        assert own.dtype == torch.bfloat16 and wide.dtype == torch.float32 and wide.source.kernel == "triton widen"
        made = torch.empty(128)
        wide.source.run(made, module.wide.bias)
        assert torch.equal(made, module.wide.bias.float())
    check(graph, module, x)


def test_what_quack_cannot_compile_is_said_once_and_not_tried_again(package, monkeypatch):
    x, weight, out = (torch.zeros(n, 16, dtype=torch.bfloat16) for n in (64, 128, 64))
    quack.epilogue.cache_clear()
    monkeypatch.setattr(sys.modules["quack.epilogue.library"], "linear_act_mod", lambda *args, **kwargs: None)
    with pytest.warns(UserWarning, match="quack-kernels cannot compute a gated layer"):
        gates.Ways("gelu").prepare(out, x, weight, None, None)
    graph = graph_of(Feed().eval().to(torch.bfloat16), torch.randn(2, 32, 16, dtype=torch.bfloat16), device=Interpreted())
    assert "triton gated" in kernels_of(graph)


@pytest.mark.parametrize(
    "module, dtype, rows",
    [
        pytest.param(Feed(), torch.bfloat16, 31, id="small"),
        pytest.param(Feed(), torch.float32, 32, id="wide numbers"),
        pytest.param(Feed(136 - 8 - 4), torch.bfloat16, 64, id="halves that begin anywhere"),
    ],
)
def test_others_are_two(package, module, dtype, rows):
    x = torch.randn(2, rows, 16, dtype=dtype)
    graph = graph_of(module.eval().to(dtype), x, device=Interpreted())
    assert "quack" not in {s.kernel for s in graph.steps} and "triton gated" in kernels_of(graph)


def test_where_quack_is_not_installed_there_are_two(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "quack.epilogue.library", None)
    monkeypatch.setattr(cute_ahead, "installed", lambda package: False)
    quack.epilogue.cache_clear()
    graph = graph_of(Feed().eval().to(torch.bfloat16), torch.randn(2, 32, 16, dtype=torch.bfloat16), device=Interpreted())
    assert "triton gated" in kernels_of(graph) and not quack.usable(torch.device("cuda"))


def test_where_quack_does_not_import_it_is_said(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "quack.epilogue.library", None)
    quack.epilogue.cache_clear()
    x, weight, out = (torch.zeros(n, 16, dtype=torch.bfloat16) for n in (64, 128, 64))
    with pytest.warns(UserWarning, match="quack-kernels cannot compute a gated layer here, two kernels do: .*quack"):
        gates.Ways("gelu").prepare(out, x, weight, None, None)
    assert quack.failed == {"gelu"} and not quack.usable(torch.device("cuda"))
