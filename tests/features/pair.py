"""A pipeline on torch and its like on OneFlow, which go through the same."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline

from conformance import build
from conformance import flux as flux_parts
from conformance import stable_diffusion as sd_parts
from diffusers_oneflow import FallbackWarning, OneFlowConfig
from diffusers_oneflow.backend import attach, dispatcher_of, models
from diffusers_oneflow.parity import MOST_LEVELS


class Pair:
    """Two pipelines with the same weights.

    Args:
        make: makes one; called twice with torch seeded alike.
        arguments: of every call.
        only: the one model that goes to OneFlow (None: all).
        options: of `OneFlowConfig`; a fallback raises unless they allow it.

    Attributes:
        stock: the one on torch.
        attached: the one on OneFlow.
    """

    def __init__(self, make: Callable, arguments: dict, only: str | None = None, **options):
        self.stock, self.attached = seeded(make), seeded(make)
        self.arguments = arguments
        config = OneFlowConfig(**{"fallback": "error", "progress": False, **options})
        if only is None:
            self.attached.to(backend="oneflow", backend_config=config)
        else:
            attach(getattr(self.attached, only), only, config)

    def each(self, change: Callable) -> list:
        """What `change` gives for each of the two pipelines, with torch seeded alike."""
        return [seeded(change, pipe) for pipe in (self.stock, self.attached)]

    def draw(self, **arguments) -> np.ndarray:
        """Torch's images, in levels of 255; fails if OneFlow's are not the same."""
        expected, made = self.each(lambda pipe: draw(pipe, **{**self.arguments, **arguments}))
        assert expected.shape == made.shape
        assert np.abs(expected - made).max() <= MOST_LEVELS, f"{np.abs(expected - made).max()} levels of 255 apart"
        return expected

    def built(self, path: str = "unet") -> int:
        """Graphs that were built for a component so far."""
        return dispatcher_of(models(self.attached)[path]).record.built

    def calls(self, path: str = "unet") -> int:
        """Calls of a component that its present graphs have run."""
        return sum(entry.calls for entry in dispatcher_of(models(self.attached)[path]).entries)

    def fallbacks(self, path: str = "unet") -> dict[str, int]:
        """Reason -> calls of a component that ran in torch for it."""
        return dispatcher_of(models(self.attached)[path]).record.fallbacks


def seeded(function: Callable, *args):
    """What a function gives after torch was seeded."""
    torch.manual_seed(0)
    return function(*args)


def draw(pipe, seed: int = 0, output_type: str = "np", **arguments):
    """Images of two steps in levels of 255, (n, h, w, 3) float; as they are, (n, 3, h, w), with output_type="pt"."""
    given = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(seed), **arguments}
    images = pipe(**given, output_type=output_type).images
    return np.round(np.asarray(images) * 255) if output_type == "np" else images


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether images differ so much that a feature is seen to have done something."""
    return np.abs(a - b).max() > 3


def warned(function: Callable, *args) -> tuple[object, list[str]]:
    """``(what it gives, the warnings of this package)``."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args)
    return result, [str(w.message) for w in caught if issubclass(w.category, FallbackWarning)]


# 16x16 pixels.
SD = {"prompt": "a large red circle", "height": 16, "width": 16, "guidance_scale": 4.0}
FLUX = {"prompt": "a large red circle", "height": 16, "width": 16, "max_sequence_length": 16}


def stable_diffusion(**changes):
    """A tiny StableDiffusionPipeline, with a tokenizer of its own."""
    unet = build.unet(**{
        "block_out_channels": (8,), "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",), "mid_block_type": None, **changes.pop("unet", {}),
    })  # fmt: skip
    parts = sd_parts.parts(unet=unet, tokenizer=copy.deepcopy(build.tokenizer()), **changes)
    return _quiet(StableDiffusionPipeline(**parts))


def flux(**changes):
    """A tiny FluxPipeline."""
    return _quiet(FluxPipeline(**flux_parts.parts(transformer=changes)))


def _quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe
