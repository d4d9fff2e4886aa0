"""What can be switched on a model: FreeU, fused projections, attention processors and backends, slices and tiles of the VAE."""

import contextlib

import numpy as np
import pytest
import torch
from diffusers import Transformer2DModel
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceConfig, _apply_smoothed_energy_guidance_hook
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from .pair import FLUX, SD, Pair, differ, flux, stable_diffusion, warned


def test_free_u():
    pair = Pair(stable_diffusion, SD, only="unet", fallback="torch")
    plain = pair.draw()
    pair.each(lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6))
    freed, said = warned(pair.draw)
    assert differ(plain, freed)
    # The attention blocks, at least, stay on OneFlow.
    assert len(said) == 1 and "complex numbers" in said[0] and "of its parts ran on OneFlow" in said[0]
    assert list(pair.fallbacks().values()) == [2]
    pair.each(lambda pipe: pipe.disable_freeu())
    assert not differ(plain, pair.draw())
    # Not the same graph: diffusers leaves attributes behind.
    assert pair.built() == 2 and pair.calls() == 4


def test_smoothed_energy_guidance():
    """Its hook blurs the queries of one block's self-attention in place; diffusers' guider sets and removes it in each step."""
    blurs = SmoothedEnergyGuidanceConfig(indices=[0], fqn="transformer_blocks")

    def blur(pipe):
        first = next(m for m in pipe.unet.modules() if isinstance(m, Transformer2DModel))
        _apply_smoothed_energy_guidance_hook(first, blurs, 3.0, "seg")

    def remove(pipe):
        for module in pipe.unet.modules():
            if hasattr(module, "_diffusers_hook"):
                module._diffusers_hook.remove_hook("seg", recurse=False)

    pair = Pair(stable_diffusion, SD, only="unet", fallback="torch")
    plain = pair.draw()
    pair.each(blur)
    blurred, said = warned(pair.draw)
    assert not np.array_equal(plain, blurred)
    assert len(said) == 1 and "attn1.to_q" in said[0]
    before = pair.calls()
    pair.each(remove)
    assert np.array_equal(plain, pair.draw()) and pair.calls() > before


def test_fused_projections():
    pair = Pair(stable_diffusion, SD)
    plain = pair.draw()
    pair.each(lambda pipe: pipe.fuse_qkv_projections())
    assert not differ(plain, pair.draw())
    assert pair.built() == 2 and pair.built("vae.decoder") == 2
    pair.each(lambda pipe: pipe.unfuse_qkv_projections())
    assert not differ(plain, pair.draw())


class Sharper:
    """A processor of a user's own."""

    def __init__(self, factor: float):
        self.factor, self.inner = factor, AttnProcessor2_0()

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return self.inner(attn, hidden_states, *args, **kwargs) * self.factor


class Watching(AttnProcessor2_0):
    """Keeps what it computes, as those do that show attention maps."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __call__(self, *args, **kwargs):
        made = super().__call__(*args, **kwargs)
        self.seen.append(made)
        return made


def test_attention_processors():
    pair = Pair(stable_diffusion, SD, only="unet")
    plain = pair.draw()
    pair.each(lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()))
    assert not differ(plain, pair.draw())
    pair.each(lambda pipe: pipe.unet.set_attn_processor(Sharper(1.5)))
    assert differ(plain, pair.draw())
    assert pair.built() == 3 and pair.calls() == 6
    # Seen even where nobody calls set_attn_processor.
    for processors in pair.each(lambda pipe: pipe.unet.attn_processors):
        for processor in processors.values():
            processor.factor = 0.5
    assert differ(plain, pair.draw())
    assert pair.built() == 4


def test_a_processor_that_stores_what_it_sees_runs_in_torch():
    pair = Pair(stable_diffusion, SD, only="unet", fallback="torch")
    stores = pair.each(lambda pipe: pipe.unet.set_attn_processor(Watching()) or pipe.unet.attn_processors)
    _, said = warned(pair.draw)
    assert len(said) == 1 and "stateful" in said[0] and pair.built() == 0
    torchs, ours = ([t for p in store.values() for t in p.seen] for store in stores)
    assert len(torchs) == len(ours) > 0
    for a, b in zip(torchs, ours):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@contextlib.contextmanager
def _other(name: str):
    """A backend that is active for a while and gives something else."""
    backends = _AttentionBackendRegistry._backends
    known, native = backends[name], backends[AttentionBackendName.NATIVE]
    backends[name] = lambda *args, **kwargs: native(*args, **kwargs) * -9
    try:
        with attention_backend(name):
            yield
    finally:
        backends[name] = known


def test_attention_backends():
    pair = Pair(flux, FLUX, only="transformer")
    plain = pair.draw()
    with attention_backend("_native_math"):
        assert np.abs(pair.draw() - plain).max() <= 1
    pair.draw()
    # What computes attention is part of what a graph is found by.
    assert pair.built("transformer") == 2
    pair.each(lambda pipe: pipe.transformer.set_attention_backend("_native_math"))
    assert np.abs(pair.draw() - plain).max() <= 1
    assert pair.built("transformer") == 3 and pair.calls("transformer") == 8
    pair.each(lambda pipe: pipe.transformer.reset_attention_backend())
    with _other("_native_efficient"):
        assert differ(plain, pair.draw())
    assert pair.built("transformer") == 4
    for pipe in (pair.stock, pair.attached):
        with pytest.raises(ValueError, match="must be one of the following"):
            pipe.transformer.set_attention_backend("abacus")


@pytest.mark.parametrize("change", ["slicing", "tiling"])
def test_slices_and_tiles_of_the_vae(change):
    pair = Pair(stable_diffusion, SD)
    latents = torch.randn(2, 4, 24, 12)
    pair.each(lambda pipe: getattr(pipe.vae, f"enable_{change}")())

    def through(pipe):
        with torch.no_grad():
            image = pipe.vae.decode(latents).sample
            return image, pipe.vae.encode(image.clamp(-1, 1)).latent_dist.mean

    for ours, theirs in zip(*pair.each(through)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for half in ("vae.encoder", "vae.decoder"):
        assert pair.calls(half) >= 2 and not pair.fallbacks(half)
