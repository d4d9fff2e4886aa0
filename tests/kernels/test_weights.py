"""Packed weights are never stale, and give the same results as torch's own."""

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig
from diffusers_oneflow.backend import dispatcher_of
from diffusers_oneflow.kernels import loader


class Layers(torch.nn.Module):
    """A convolution and a linear layer: (n, 3, h, w) -> (n, 8)."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.Linear(64, 8)

    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))


def attached(module, **options):
    return diffusers_oneflow.compile(module.eval(), OneFlowConfig(fallback="error", **options))


def same(module, x):
    torch.testing.assert_close(module(x), module._call_impl(x), rtol=2e-5, atol=2e-5)


def into_data(p):
    p.data += 1.0


def into_memory(p):
    p.detach().numpy()[...] *= 2.0


def by_loading(p):
    p.data.copy_(torch.randn_like(p))


def one_element(p):
    p.data.view(-1)[-1] += 3.0


def test_of_what_cannot_be_packed_nothing_is_known():
    from diffusers_oneflow.kernels.weights import WeightStore

    store, weight, fails = WeightStore(), torch.randn(4, 4), [True]

    def pack(w):
        if fails.pop():
            raise RuntimeError("planted")
        return w.contiguous()

    for known in (0, 1):
        fails.append(not known)
        if known:
            assert store._slot(("linear", 1), weight, torch.bfloat16, pack) >= 0
        else:
            with pytest.raises(RuntimeError, match="planted"):
                store._slot(("linear", 1), weight, torch.bfloat16, pack)
        assert len(store._slots) == len(store._packed) == known
        store.watch()
        store.refresh()
    store.close()


@pytest.mark.parametrize("write", [into_data, into_memory, by_loading, one_element])
@pytest.mark.parametrize("weights", ["packed", "shared"])
@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "linear.weight", "linear.bias"])
@torch.no_grad()
def test_a_write_is_seen_without_a_new_graph(write, weights, name):
    module = attached(Layers(), weights=weights)
    x = torch.randn(2, 3, 6, 6)
    same(module, x)
    before = module(x)
    for _ in range(2):
        write(module.get_parameter(name))
        same(module, x)
    assert not torch.equal(before, module(x))
    assert dispatcher_of(module).record.built == 1


@torch.no_grad()
def test_peft_merge_and_unmerge_are_seen():
    from peft import LoraConfig, inject_adapter_in_model

    module = Layers()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["linear"], init_lora_weights=False), module)
    attached(module, weights="packed")
    x = torch.randn(2, 3, 6, 6)
    same(module, x)
    module.linear.merge()
    same(module, x)
    merged = module(x)
    module.linear.unmerge()
    same(module, x)
    torch.testing.assert_close(module(x), merged, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_all_kinds_of_weights_give_the_same():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 6, 6)
    results = []
    for weights in ("packed", "shared"):
        torch.manual_seed(0)
        results.append(attached(Layers(), weights=weights)(x))
    if loader.instruction_set() != "amx":
        assert torch.equal(*results)
    # There few rows meet a filter that is not packed in another order.
    torch.testing.assert_close(*results, rtol=0, atol=2e-7)


@torch.no_grad()
def test_several_shapes_share_one_packed_copy():
    module = attached(Layers(), weights="packed")
    module(torch.randn(2, 3, 6, 6))
    once = dispatcher_of(module).packed_bytes
    module(torch.randn(1, 3, 9, 5))
    assert dispatcher_of(module).record.built == 2
    assert dispatcher_of(module).packed_bytes == once >= sum(p.nbytes for p in module.parameters() if p.ndim > 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weights", ["packed", "shared"])
@torch.no_grad()
def test_weights_in_both_layouts(memory_format, weights):
    module = Layers().to(memory_format=memory_format)
    same(attached(module, weights=weights), torch.randn(2, 3, 6, 6))


@torch.no_grad()
def test_weights_that_move_are_packed_anew():
    module = attached(Layers(), weights="packed")
    x = torch.randn(2, 3, 6, 6)
    same(module, x)
    module.linear.weight = torch.nn.Parameter(torch.randn(8, 64))
    same(module, x)
    module.load_state_dict({k: torch.randn_like(v) for k, v in module.state_dict().items()}, assign=True)
    same(module, x)


class Branches(Layers):
    """Reads the linear layer only for more than one image."""

    def forward(self, x):
        made = self.conv(x).mean((2, 3))
        return self.linear(made) if len(x) > 1 else made


@torch.no_grad()
def test_a_write_before_another_graph_packs_more_is_not_forgotten():
    module = attached(Branches(), weights="packed")
    one, two = torch.randn(1, 3, 6, 6), torch.randn(2, 3, 6, 6)
    same(module, one)
    into_data(module.conv.weight)
    same(module, two)
    same(module, one)
