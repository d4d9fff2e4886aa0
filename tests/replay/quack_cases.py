"""Cases of products by quack, for Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py.

Its kernels need a GPU: what stands for them, in conftest.py, computes the same from the same arguments.
"""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_oneflow.replay.cuda import choice, products, quack

from .test_graph import graph_of
from .triton_cases import numbers
from .triton_graphs import Interpreted, check


def ways_of(x, weight, bias=None, residual=None, act="none"):
    ways = products.Ways(x.shape[1], x.shape[2], len(weight), act, act_first=True)
    out = torch.full((1, x.shape[1], len(weight)), 77.0, dtype=x.dtype)
    args = (out, x, weight, bias, residual)
    return ways, args, ways._ways(*args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_one_of_the_ways_of_a_large_product(package, dtype):
    x, weight = numbers(1, 64, 16, dtype=dtype), numbers(128, 16, dtype=dtype, seed=1, scale=0.3)
    ways, args, found = ways_of(x, weight)
    assert [name for _, name in found] == ["quack", "cublas"] and ways.prepared_here
    found[0][0](*args)
    expected = F.linear(x.double(), weight.double())
    assert ((args[0].double() - expected).norm() / expected.norm()).item() < torch.finfo(dtype).eps
    ways.prepare(args[0].fill_(77.0), *args[1:])
    assert ((args[0].double() - expected).norm() / expected.norm()).item() < torch.finfo(dtype).eps
    assert len(package) == 2 and len(set(package)) == 1


@pytest.mark.parametrize(
    "rows, k, columns, kind",
    [
        pytest.param(31, 16, 128, "", id="small"),
        pytest.param(64, 20, 128, "", id="rows that begin anywhere"),
        pytest.param(64, 16, 132, "", id="columns that begin anywhere"),
        pytest.param(64, 16, 128, "float32", id="wide numbers"),
        pytest.param(64, 16, 128, "bias", id="bias"),
        pytest.param(64, 16, 128, "residual", id="residual"),
        pytest.param(64, 16, 128, "act", id="act"),
        pytest.param(64, 16, 128, "apart", id="rows that lie apart"),
        pytest.param(64, 16, 128, "batch", id="several matrices"),
        pytest.param(64, 16, 128, "off", id="a weight that begins anywhere"),
    ],
)
def test_others_are_the_librarys(package, rows, k, columns, kind):
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    x = numbers(2 if kind == "batch" else 1, rows, 2 * k if kind == "apart" else k, dtype=dtype)[..., :k]
    bias = numbers(columns, dtype=dtype) if kind == "bias" else None
    residual = numbers(1, rows, columns, dtype=dtype) if kind == "residual" else None
    weight = numbers(columns * k + 1, dtype=dtype)[int(kind == "off") :][: columns * k].view(columns, k)
    _, _, found = ways_of(x, weight, bias, residual, "relu" if kind == "act" else "none")
    assert [name for _, name in found] == ["cublas"]


def test_what_it_cannot_compile_is_said_once_and_not_tried_again(package, monkeypatch):
    monkeypatch.setattr(sys.modules["quack.epilogue.library"], "linear_act_mod", lambda *args, **kwargs: int)
    quack.epilogue.cache_clear()
    x, weight = numbers(1, 64, 16, dtype=torch.bfloat16), numbers(128, 16, dtype=torch.bfloat16)
    ways, args, found = ways_of(x, weight)
    assert "quack" in {name for _, name in found}
    with pytest.warns(UserWarning, match="quack-kernels cannot compute a product here"), pytest.raises(TypeError):
        ways.prepare(*args)
    assert "quack" not in {name for _, name in ways_of(x, weight)[2]}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

    def forward(self, x):
        return (self.second(torch.relu(self.first(x))),)


def test_what_prepares_a_graph_compiles_it(package):
    torch.manual_seed(0)
    module, x = Two().eval().to(torch.bfloat16), torch.randn(2, 32, 64, dtype=torch.bfloat16)
    graph = graph_of(module, x, device=Interpreted())
    _, here, _ = graph._preparations()
    for prepare in here:
        prepare()
    assert len(package) == 1  # the first, of the same shape, ends in an activation
    check(graph, module, x)


def test_it_is_said_while_ways_are_tried_too(package, monkeypatch):
    monkeypatch.setattr(sys.modules["quack.epilogue.library"], "linear_act_mod", lambda *args, **kwargs: int)
    quack.epilogue.cache_clear()
    _, args, found = ways_of(numbers(1, 64, 16, dtype=torch.bfloat16), numbers(128, 16, dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match="quack-kernels cannot compute a product here"):
        assert isinstance(choice._error(found[0], args), TypeError)


@pytest.mark.parametrize("fault", ["gelu_erf", "linear_act_mod"])
def test_another_version_of_it_is_none(package, monkeypatch, fault):
    module = sys.modules["quack.activation" if fault == "gelu_erf" else "quack.epilogue.library"]
    monkeypatch.delattr(module, fault)
    quack.epilogue.cache_clear()
    assert not quack.usable(torch.device("cuda"))
