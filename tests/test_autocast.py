"""Under torch.autocast a model runs on OneFlow as autocast would have it; on a GPU not one whose weights it casts."""

import pytest
import torch
from torch import nn

from diffusers_oneflow import OneFlowConfig, autocast, parity
from diffusers_oneflow.backend import attach, detach, dispatcher_of
from diffusers_oneflow.errors import FallbackWarning

CPU = torch.device("cpu")


class Small(nn.Module):
    """What autocast casts, and what it leaves: a convolution, a sum, a norm, a product."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x, scale):
        made = nn.functional.silu(self.norm(self.conv(x)))
        return self.out(made.flatten(2).mT * scale), made.float().exp()


@pytest.fixture
def small():
    torch.manual_seed(0)
    module = Small().eval().requires_grad_(False).to(torch.bfloat16)
    yield module
    if dispatcher_of(module) is not None:
        dispatcher_of(module).close()
        detach(module)


def test_what_is_on(monkeypatch):
    assert autocast.current(CPU) is None
    with torch.autocast("cpu", torch.float16):
        assert autocast.current(CPU) == autocast.current(torch.device("meta")) == autocast.Autocast("cpu", torch.float16)
        assert autocast.current(torch.device("cuda")) is None
        with autocast.off(autocast.current(CPU)):
            assert autocast.current(CPU) is None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")  # torch switches it on with a GPU alone
    assert autocast.current(torch.device("cuda", 1)) == autocast.Autocast("cuda", torch.get_autocast_dtype("cuda"))
    assert autocast.current(CPU) is None


def test_weights_that_would_be_cast_are_refused(small):
    state = autocast.Autocast("cuda", torch.bfloat16)
    small.norm.float()
    small.table = nn.Embedding(4, 4)
    assert state.refusal(small) is None
    small.out.half()
    said = "torch.autocast is on, and would cast out.weight of float16 in every call: load the model in bfloat16"
    assert state.refusal(small) == said
    assert "cast weight of float16" in state.refusal(small.out)
    assert autocast.Autocast("cpu", torch.bfloat16).refusal(small) is None


@pytest.mark.parametrize("dtype, kernels, able", [(torch.float16, "native", False), (torch.bfloat16, "oneflow", True)])
def test_where_no_kernel_casts_a_model_is_not_even_captured(small, monkeypatch, dtype, kernels, able):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: able)
    state, said = autocast.Autocast("cpu", dtype), "kernels do not cast conv.weight of float32 to"
    assert said in state.refusal(small.float(), kernels) and state.refusal(small.to(dtype), kernels) is None
    assert autocast.Autocast("cpu", torch.bfloat16).refusal(small.float()) is None


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32])
def test_a_model_runs_on_oneflow(small, held):
    small.to(held)
    # Of float32, which the convolution would refuse without autocast.
    x, scale = torch.randn(2, 3, 8, 8), torch.tensor(1.5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = small(x, scale)
    exact = small.double()(x.double(), scale.double())
    small.to(held)
    attach(small, "small", OneFlowConfig(fallback="error", progress=False, cache=None))
    with torch.autocast("cpu", torch.bfloat16):
        made, again = small(x, scale), small(x, scale)
    assert dispatcher_of(small).record.built == 1
    for ours, second, theirs, wide in zip(made, again, expected, exact):
        assert ours.dtype == theirs.dtype and torch.equal(ours, second)
        assert parity.error(ours, wide).rms <= parity.HALF_FACTOR * parity.error(theirs, wide).rms


def test_each_state_has_a_graph_of_its_own(small):
    attach(small, "small", OneFlowConfig(fallback="error", progress=False, cache=None))
    x, scale = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16), torch.tensor(1.5)
    plain = small(x, scale)
    with torch.autocast("cpu", torch.bfloat16):
        small(x, scale)
        with torch.autocast("cpu", enabled=False):
            inside = small(x, scale)
    assert dispatcher_of(small).record.built == 2
    assert all(map(torch.equal, plain, inside))


@pytest.mark.parametrize("weights", ["auto", "shared", "packed", "release"])
@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "out.weight", "out.bias", "norm.weight"])
def test_a_write_to_a_weight_that_is_cast_is_seen(small, weights, name):
    small.float()
    attach(small, "small", OneFlowConfig(fallback="error", progress=False, cache=None, weights=weights))
    x, scale = torch.randn(2, 3, 8, 8), torch.tensor(1.5)
    with torch.autocast("cpu", torch.bfloat16):
        before = small(x, scale)
        # Past torch's count of versions.
        small.get_parameter(name).numpy()[...] *= 2
        after, expected = small(x, scale), small._call_impl(x, scale)
    assert dispatcher_of(small).record.built == 1
    assert not torch.equal(before[0], after[0])
    torch.testing.assert_close(after[0], expected[0], rtol=3e-2, atol=3e-2)


def test_graphs_with_and_without_autocast_share_a_model(small):
    small.float()
    attach(small, "small", OneFlowConfig(fallback="error", progress=False, cache=None, weights="packed"))
    x, scale = torch.randn(2, 3, 8, 8), torch.tensor(1.5)
    plain = small(x, scale)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = small(x, scale), small(x, scale)
    assert all(map(torch.equal, plain, small(x, scale))) and all(map(torch.equal, first, second))
    # Each product has its weight in both dtypes, and each bias is cast.
    both = [*small.conv.parameters(), *small.out.parameters()]
    assert dispatcher_of(small).packed_bytes == sum(4 * p.numel() for p in both if p.ndim > 1) + sum(2 * p.numel() for p in both)


def test_what_is_refused_runs_in_torch_and_says_why(small, monkeypatch):
    monkeypatch.setattr(autocast.Autocast, "refusal", lambda self, module, kernels: "load the model in bfloat16")
    attach(small, "small", OneFlowConfig(progress=False, cache=None))
    x, scale = torch.randn(2, 3, 8, 8), torch.tensor(1.5)
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(FallbackWarning, match="load the model in bfloat16"):
        made = small(x, scale)
        expected = small.forward(x, scale)
    assert all(map(torch.equal, made, expected)) and dispatcher_of(small).record.built == 0


def test_the_disk_cache_tells_them_apart(small, tmp_path):
    config = OneFlowConfig(fallback="error", progress=False, cache=tmp_path)
    x, scale = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16), torch.tensor(1.5, dtype=torch.bfloat16)
    dtypes = []
    for _ in range(2):
        attach(small, "small", config)
        small(x, scale)
        with torch.autocast("cpu", torch.float16, enabled=False), torch.autocast("cpu", torch.bfloat16):
            small(x.float(), scale)
            small(x, scale)
            small.float()(x, scale)
        dtypes.append([entry.origin for entry in dispatcher_of(small).entries])
        dispatcher_of(small).close()
        detach(small)
        small.to(torch.bfloat16)
    assert dtypes == [["captured"], ["disk cache"]]


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


@pytest.mark.parametrize("function", [
    lambda x, y: torch.einsum("ij,kj->ik", x, y), torch.inner, lambda x, y: torch.tensordot(x, y.mT, 1),
    lambda x, y: torch.nn.functional.interpolate((x @ y)[None, None], size=(5, 4), mode="bilinear") + 1,
    lambda x, y: torch.linalg.multi_dot([x, y, x]), lambda x, y: torch.linalg.matrix_power(x, 2) + y,
])  # fmt: skip
def test_ops_that_are_taken_apart_keep_the_casts_inside_of_them(function):
    torch.manual_seed(0)
    x, y = torch.randn(6, 6), torch.randn(6, 6)
    module = Calls(function).eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(x, y)
        attach(module, "calls", OneFlowConfig(progress=False, cache=None, fallback="error"))
        try:
            made = module(x, y)
        finally:
            dispatcher_of(module).close()
            detach(module)
    exact = function(x.double(), y.double())
    assert made.dtype == expected.dtype
    assert parity.error(made, exact).rms <= parity.HALF_FACTOR * parity.error(expected, exact).rms


def test_what_casts_otherwise_inside_is_found():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.einsum.default, ("ij->ji", [x]))
    with torch._subclasses.FakeTensorMode():
        x.meta["val"], node.meta["val"] = torch.empty(2, 3, dtype=torch.bfloat16), torch.empty(3, 2, dtype=torch.int64)
    assert autocast.spell_out(graph, autocast.Autocast("cpu", torch.bfloat16)) is node


def test_resizes_that_autocast_does_in_float32_get_float32():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    resized = graph.call_function(torch.ops.aten.upsample_nearest2d.vec, (), {"input": x, "scale_factors": [2.0, 2.0]})
    with torch._subclasses.FakeTensorMode():
        x.meta["val"] = torch.empty(1, 2, 3, 3, dtype=torch.float16)
        resized.meta["val"] = torch.empty(1, 2, 6, 6, dtype=torch.float16)
    assert autocast.spell_out(graph, autocast.Autocast("cuda", torch.float16)) is None
    cast = resized.kwargs["input"]
    assert cast.args == (x, torch.float32) and cast.meta["val"].dtype == torch.float32
