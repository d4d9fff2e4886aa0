"""Caches between steps: their hooks are Python code with a memory and run in torch, which is said once; the rest on OneFlow."""

import numpy as np
import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from diffusers_oneflow.parity import MOST_LEVELS

from .pair import FLUX, Pair, dispatcher_of, draw, flux, warned

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
    return Pair(flux, {**FLUX, "num_inference_steps": 4}, only="transformer", fallback="torch")


def outcome(pipe):
    """The image in levels, or the error in words."""
    try:
        return draw(pipe, **FLUX, num_inference_steps=4)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
def test_a_cache(shared, config):
    plain, calls, before = shared.draw(), shared.calls("transformer"), dict(shared.fallbacks("transformer"))
    shared.each(lambda pipe: pipe.transformer.enable_cache(config(pipe)))
    (stock, attached), said = warned(shared.each, outcome)
    # Not every cache works with every model in stock diffusers, either.
    assert stock == attached if isinstance(stock, str) else np.abs(stock - attached).max() <= MOST_LEVELS
    reason, count = next((k, v) for k, v in shared.fallbacks("transformer").items() if v != before.get(k))
    assert "forward of its own" in reason and (count - before.get(reason, 0) == 4 or isinstance(stock, str))
    assert len(said) == (reason not in before and not isinstance(stock, str))
    assert dispatcher_of(shared.attached.transformer).parts.graphs > 0
    shared.each(lambda pipe: pipe.transformer.disable_cache())
    assert np.array_equal(shared.draw(), plain)
    assert shared.calls("transformer") == calls + 4
