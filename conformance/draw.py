"""Seeded runs of pipelines, as parity takes them."""

from collections.abc import Callable

import numpy as np
import torch

from diffusers_oneflow import parity

from . import place

STEPS = 2


def compare(pipe, *arguments, **options) -> parity.Report:
    """The parity of a pipeline in one run of `STEPS` steps with these arguments."""
    pipe.set_progress_bar_config(disable=True)
    return parity.pipeline(place.here().move_pipeline(pipe), drawer(*arguments, **options))


def drawer(*arguments, **options) -> Callable[[object], np.ndarray]:
    """A function pipe -> images, uint8 (n, h, w, 3), that always starts from the same noise."""

    def draw(pipe) -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        with place.noise():
            made = pipe(*arguments, num_inference_steps=STEPS, generator=noise, output_type="np", **options)
        return (made.images * 255).round().astype(np.uint8)

    return draw


def picture(size: int, seed: int = 0):
    """A smooth random PIL image of `size` pixels a side."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
