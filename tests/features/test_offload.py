"""Offloading and layerwise casting: the same error as torch's, or the same images."""

import numpy as np
import pytest
import torch
from diffusers.hooks import apply_layerwise_casting

from diffusers_oneflow.backend import OneFlowBackend

from .pair import SD, Pair, draw, stable_diffusion, warned


def outcome(function, pipe):
    """The error that it raises, in words, or None."""
    try:
        function(pipe)
    except Exception as error:
        return type(error), str(error)


def drawn(pipe):
    """The image in levels, or the error in words."""
    try:
        return draw(pipe, **SD)
    except TypeError as error:
        return f"{type(error).__name__}: {error}"


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "model on the CPU": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "sequential on the CPU": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
def test_offloading_does_what_it_does_in_torch(offload):
    pair = Pair(stable_diffusion, SD, fallback="torch")
    stock, attached = pair.each(lambda pipe: outcome(offload, pipe))
    assert stock == attached
    assert OneFlowBackend.is_attached(pair.attached)
    # Some can be switched on, but not used, with these releases.
    (images, said), again = warned(pair.each, drawn), warned(pair.each, drawn)
    if isinstance(images[0], str):
        assert images[0] == images[1]
        return
    assert np.abs(images[0] - images[1]).max() <= 1
    for path in ("unet", "vae.decoder", "text_encoder"):
        # Hooks run in every call, so it is torch that does; without them it is OneFlow.
        reasons = pair.fallbacks(path)
        assert len([s for s in said if s.startswith(f"{path} ")]) == len(reasons)
        assert (not reasons and pair.calls(path) > 0) or (pair.calls(path) == 0 and "hook" in "".join(reasons))
    assert not again[1]


def test_group_offloading():
    pair = Pair(stable_diffusion, SD, only="unet", fallback="torch")
    plain = pair.draw()
    cpu = torch.device("cpu")
    options = {"onload_device": cpu, "offload_device": cpu, "offload_type": "leaf_level"}
    outcomes = pair.each(lambda pipe: outcome(lambda p: p.unet.enable_group_offload(**options), pipe))
    assert outcomes[0] == outcomes[1]
    assert abs(pair.draw() - plain).max() <= 1
    hooked = any(hasattr(m, "_diffusers_hook") for m in pair.attached.unet.modules())
    assert hooked == bool(pair.fallbacks())
    assert pair.calls() + sum(pair.fallbacks().values()) == 4


def test_layerwise_casting():
    pair = Pair(stable_diffusion, SD, only="unet", fallback="torch")
    pair.each(lambda pipe: apply_layerwise_casting(pipe.unet, torch.bfloat16, torch.float32))
    _, said = warned(pair.draw)
    assert len(said) == 1 and said[0].startswith("unet ") and pair.built() == 0
