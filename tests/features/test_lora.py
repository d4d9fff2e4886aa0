"""LoRA adapters: the images are torch's at every step, and other weights or strengths need no other graph."""

import pytest
import torch
from peft import LoraConfig

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig
from diffusers_oneflow.backend import dispatcher_of
from diffusers_oneflow.parity import HALF_FACTOR, error

from .pair import FLUX, SD, Pair, differ, flux, stable_diffusion


def lora(pipe, rank: int, seed: int, component: str = "unet", targets=("to_q", "to_v", "to_out.0")) -> dict[str, torch.Tensor]:
    """The state dict of an adapter with random weights."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, module in getattr(pipe, component).named_modules():
        if name.endswith(targets) and isinstance(module, torch.nn.Linear):
            made[f"{component}.{name}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=generator)
            made[f"{component}.{name}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=generator)
    assert made
    return made


def load(name: str, rank: int, seed: int, **options):
    """A change that loads an adapter."""
    return lambda pipe: pipe.load_lora_weights(lora(stable_diffusion(), rank, seed), adapter_name=name, **options)


@pytest.fixture
def pair() -> Pair:
    return Pair(stable_diffusion, SD, only="unet")


@pytest.fixture(scope="module")
def shared() -> Pair:
    """One pair with two adapters, for tests of which none needs another graph."""
    pair = Pair(stable_diffusion, SD, only="unet")
    pair.each(load("one", 2, seed=1))
    pair.each(load("two", 4, seed=2))
    pair.each(lambda pipe: pipe.set_adapters(["one", "two"], [1.0, 1.0]))
    pair.draw()
    # The `scale` of a call is another argument; what it is does not matter.
    pair.draw(cross_attention_kwargs={"scale": 0.9})
    return pair


def test_other_strengths_need_no_other_graph(shared):
    seen, calls = [], shared.calls()
    for strengths in ([1.0, 1.0], [0.5, 1.0], [0.5, 0.5], [-0.7, 0.2], [0.0, 0.9]):
        shared.each(lambda pipe, s=strengths: pipe.set_adapters(["one", "two"], s))
        seen.append(shared.draw())
    for scale in (0.5, 0.25, -1.0):
        seen.append(shared.draw(cross_attention_kwargs={"scale": scale}))
    assert shared.built() == 2 and shared.calls() == calls + 16
    assert all(differ(a, b) for i, a in enumerate(seen) for b in seen[:i]), "a strength had no effect"


def test_a_scale_of_zero_resets_the_strengths_as_it_does_in_torch(shared):
    shared.each(lambda pipe: pipe.set_adapters(["one", "two"], [0.3, 0.2]))
    before = shared.draw()
    assert differ(before, shared.draw(cross_attention_kwargs={"scale": 0.0}))
    # diffusers forgets the 0.3 in such a call.
    assert differ(before, shared.draw())
    assert shared.built() == 2


def test_a_hot_swap_needs_no_other_graph(shared):
    shared.each(lambda pipe: pipe.set_adapters(["one", "two"], [0.7, 0.2]))
    before = shared.draw()
    shared.each(load("one", 2, seed=5, hotswap=True))
    assert differ(before, shared.draw())
    shared.each(load("one", 2, seed=1, hotswap=True))
    shared.each(lambda pipe: pipe.set_adapters(["one", "two"], [0.7, 0.2]))
    assert not differ(before, shared.draw())
    assert shared.built() == 2


def test_a_strength_for_each_block_splits_a_graphs_input_once():
    # Without a block in the middle diffusers does not take a strength for each.
    middle = {"mid_block_type": "UNetMidBlock2DCrossAttn"}
    pair = Pair(lambda: stable_diffusion(unet=middle), SD, only="unet")
    targets = ("attn1.to_q", "attn2.to_v")
    pair.each(lambda pipe: pipe.load_lora_weights(lora(stable_diffusion(unet=middle), 2, 1, targets=targets), adapter_name="one"))
    pair.draw()
    for low, high in ((0.2, 0.9), (0.8, 0.1), (0.5, 0.5)):
        pair.each(lambda pipe, a=low, b=high: pipe.set_adapters("one", {"unet": {"down": a, "up": b}}))
        pair.draw()
    assert pair.built() == 2


def test_a_hot_swap_of_packed_weights():
    pair = Pair(stable_diffusion, SD, only="unet", weights="packed")
    pair.each(load("one", 2, seed=1))
    before = pair.draw()
    pair.each(load("one", 2, seed=2, hotswap=True))
    assert differ(before, pair.draw())
    assert pair.built() == 1


def test_hot_swaps_between_ranks(pair):
    """What enable_lora_hotswap prepares: padded weights, and strengths that are tensors."""
    pair.each(lambda pipe: pipe.enable_lora_hotswap(target_rank=4))
    pair.each(load("one", 2, seed=1))
    seen = [pair.draw()]
    for rank, seed in ((4, 2), (3, 3)):
        pair.each(load("one", rank, seed=seed, hotswap=True))
        seen.append(pair.draw())
    assert differ(seen[0], seen[1]) and differ(seen[1], seen[2])
    assert pair.built() == 1
    for module in pair.attached.unet.modules():
        if hasattr(module, "scaling"):
            assert isinstance(module.scaling["one"], torch.Tensor)
            module.scaling["one"].fill_(0.5)
    for module in pair.stock.unet.modules():
        if hasattr(module, "scaling"):
            module.scaling["one"].fill_(0.5)
    assert differ(seen[2], pair.draw())
    assert pair.built() == 1
    for scale in (0.5, 0.2):
        pair.draw(cross_attention_kwargs={"scale": scale})
    assert pair.built() == 2


def test_fusing_and_unloading(pair):
    original = pair.draw()
    pair.each(load("one", 2, seed=1))
    pair.each(lambda pipe: pipe.set_adapters("one", 1.0))
    loaded = pair.draw()
    pair.each(lambda pipe: pipe.fuse_lora(lora_scale=0.5))
    fused = pair.draw()
    pair.each(lambda pipe: pipe.unfuse_lora())
    # Stock diffusers forgets to take the scale of a fusion back.
    pair.each(lambda pipe: pipe.set_adapters("one", 1.0))
    assert not differ(loaded, pair.draw())
    pair.each(lambda pipe: pipe.disable_lora())
    assert not differ(original, pair.draw())
    pair.each(lambda pipe: pipe.enable_lora())
    assert not differ(loaded, pair.draw())
    # Without the adapter, with it, fused, unfused (diffusers notes a fusion on the model), disabled; enabled is unfused.
    assert pair.built() == 5
    pair.each(lambda pipe: pipe.delete_adapters("one"))
    assert not differ(original, pair.draw())
    pair.each(lambda pipe: pipe.unload_lora_weights())
    assert not differ(original, pair.draw())
    assert differ(original, loaded) and differ(loaded, fused)


def test_an_adapter_of_the_text_encoder():
    pair = Pair(stable_diffusion, SD, only="text_encoder")
    targets = ("q_proj", "v_proj")
    pair.each(lambda pipe: pipe.load_lora_weights(lora(pipe, 2, 1, "text_encoder", targets), adapter_name="one"))
    seen = [pair.draw(cross_attention_kwargs={"scale": scale}) for scale in (1.0, 0.5, 0.2)]
    assert differ(seen[0], seen[1]) and differ(seen[1], seen[2])
    assert pair.built("text_encoder") == 1


def test_an_adapter_of_flux():
    pair = Pair(flux, FLUX, only="transformer")
    pair.each(lambda pipe: pipe.load_lora_weights(lora(flux(), 2, 1, "transformer", ("to_q", "to_v")), adapter_name="one"))
    seen = [pair.draw(joint_attention_kwargs={"scale": scale}) for scale in (1.0, 0.5, 0.2)]
    assert differ(seen[0], seen[1]) and differ(seen[1], seen[2])
    assert pair.built("transformer") == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["half", "dora", "convolution"])
def test_kinds_of_adapters(kind):
    """In bfloat16; with magnitudes (DoRA); on convolutions."""
    targets = ["conv1", "conv2"] if kind == "convolution" else ["to_q", "to_v"]
    unet = stable_diffusion().unet
    unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False, use_dora=kind == "dora"), "one")
    unet.eval().to(torch.bfloat16 if kind == "half" else torch.float32)
    dtype = unet.dtype
    inputs = (torch.randn(2, 4, 8, 8).to(dtype), torch.tensor(7), torch.randn(2, 5, 32).to(dtype))
    exact = stable_diffusion().unet
    exact.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False, use_dora=kind == "dora"), "one")
    exact.load_state_dict(unet.state_dict())
    exact.eval().double()
    diffusers_oneflow.compile(unet, OneFlowConfig(fallback="error", progress=False))
    for strength in (1.0, 0.3, 0.6):
        for model in (unet, exact):
            model.set_adapters("one", strength)
        reference = exact(*(t.double() if t.is_floating_point() else t for t in inputs)).sample
        ours, theirs = (error(run(*inputs).sample, reference) for run in (unet, unet._call_impl))
        factor = HALF_FACTOR if kind == "half" else 1.5
        assert ours.rms <= max(1e-6, factor * theirs.rms)
    assert dispatcher_of(unet).record.built == 1
