"""Caches between steps: their hooks are Python code with a memory, so the model runs in torch, says so once, and is right."""

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from .pair import FLUX, Pair, flux, warned

CACHES = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=0.5),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: pipe._current_timestep,
    ),
    "faster": lambda pipe: FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe._current_timestep,
    ),
    "taylor": lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1),
    "mag": lambda pipe: MagCacheConfig(num_inference_steps=4, mag_ratios=torch.ones(4) * 0.9, retention_ratio=0.2),
}


@pytest.fixture(scope="module")
def shared() -> Pair:
    return Pair(lambda: flux(num_layers=2), {**FLUX, "num_inference_steps": 4}, only="transformer", fallback="torch")


@pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
def test_a_cache(shared, config):
    plain, built, calls = shared.draw(), shared.built("transformer"), shared.calls("transformer")
    shared.each(lambda pipe: pipe.transformer.enable_cache(config(pipe)))
    before = dict(shared.fallbacks("transformer"))
    cached, said = warned(shared.draw)
    new = {k: v - before.get(k, 0) for k, v in shared.fallbacks("transformer").items() if v != before.get(k, 0)}
    assert list(new.values()) == [4] and len(said) <= 1 and "forward" in next(iter(new))
    assert len(said) == (next(iter(new)) not in before)
    # With images this coarse not every cache can be told from none.
    assert cached.shape == plain.shape
    shared.each(lambda pipe: pipe.transformer.disable_cache())
    assert (shared.draw() == plain).all()
    assert shared.built("transformer") == built == 1 and shared.calls("transformer") == calls + 4
