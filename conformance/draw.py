"""Seeded runs of pipelines, as parity takes them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusers_oneflow import parity

from . import place

STEPS = 2


def compare(pipe: Any, *arguments: Any, **options: Any) -> parity.Report:
    """The parity of a pipeline in one run of `STEPS` steps with these arguments."""
    pipe.set_progress_bar_config(disable=True)
    return parity.pipeline(place.here().move_pipeline(pipe), drawer(*arguments, **options))


def drawer(*arguments: Any, **options: Any) -> Callable[[Any], NDArray[np.uint8]]:
    """A function pipe -> images, uint8 (n, h, w, 3), that always starts from the same noise."""

    def draw(pipe: Any) -> NDArray[np.uint8]:
        noise = torch.Generator().manual_seed(0)
        with place.noise():
            made = pipe(*arguments, num_inference_steps=STEPS, generator=noise, output_type="np", **options)
        images: NDArray[Any] = made.images
        return (images * 255).round().astype(np.uint8)

    return draw


def picture(size: int, seed: int = 0) -> Image.Image:
    """A smooth random PIL image of `size` pixels a side."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
