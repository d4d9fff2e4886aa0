"""Whole pipelines as entries of a table: a class, its parts, its inputs."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from diffusers_oneflow import parity
from diffusers_oneflow.backend import models

from . import place
from .build import Maker
from .registry import Case, add

STEPS = 2
# What pipelines draw on their way to an image, as the range that is compared in 255 levels.
IMAGE, SIGNED, LATENT = (0.0, 1.0), (-1.0, 1.0), (-4.0, 4.0)


@dataclass(frozen=True)
class Entry:
    """One pipeline, and one call of it.

    Attributes:
        pipeline: the name of its class; with `variant` the name of the case.
        parts: makes what its constructor takes, with random weights; called with torch seeded.
        inputs: the call's arguments, or a function that makes them; steps, noise and output_type="np" are added.
        about: what sets it apart.
        prepare: changes the pipeline before it runs.
        change: changes it again while it is attached and has drawn: what was compiled before must not be used after.
        fallbacks: component -> part of the reason for which it runs in torch; all others run on OneFlow.
        fallbacks_in: dtype of models -> more of them in it.
        idle: components that the call does not run as modules of their own.
        values: the range of the result that is spread over 255 levels.
        module: where the class is, if diffusers shows it only when packages are installed that no case needs.
    """

    pipeline: str
    parts: Maker
    inputs: Mapping[str, Any] | Maker = field(default_factory=dict)
    about: str = ""
    variant: str = ""
    prepare: Callable[[Any], None] | None = None
    change: Callable[[Any], None] | None = None
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    fallbacks_in: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    values: tuple[float, float] = IMAGE
    module: str = "diffusers"

    @property
    def name(self) -> str:
        """Name of the case."""
        return f"{self.pipeline}-{self.variant}" if self.variant else self.pipeline

    def make(self) -> diffusers.DiffusionPipeline:
        """The pipeline, on torch, where cases run."""
        torch.manual_seed(0)
        parts = self.parts()
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe = getattr(importlib.import_module(self.module), self.pipeline)(**parts)
        pipe.set_progress_bar_config(disable=True)
        if self.prepare is not None:
            self.prepare(pipe)
        return place.here().move_pipeline(pipe)

    def run(self) -> parity.Report:
        """Compare the pipeline on the judged backend with torch.

        Raises:
            ValueError: a component did not run at all, or did though it is called idle.
            NotApplicable: torch itself cannot run the pipeline on this device, in this dtype.
        """
        pipe = self.make()
        fallbacks = {**self.fallbacks, **self.fallbacks_in.get(place.here().dtype, {})}
        try:
            report = parity.pipeline(pipe, self.draw, fallbacks, self.change)
        except parity.TorchFails as error:
            if place.here().is_usual:
                raise
            raise place.NotApplicable(str(error)) from error
        ran = {c.path for c in report.components}
        if wrong := set(self.idle) - (set(models(pipe)) - ran):
            raise ValueError(f"called idle, but it ran or does not exist: {', '.join(sorted(wrong))}")
        if silent := set(models(pipe)) - ran - set(fallbacks) - set(self.idle) - {"vae.encoder"}:
            raise ValueError(f"not called: {', '.join(sorted(silent))}")
        return report

    def draw(self, pipe: diffusers.DiffusionPipeline) -> NDArray[np.uint8]:
        """Run `pipe` from the same noise as ever: uint8, images (n, h, w, 3) or of the result's own shape."""
        torch.manual_seed(0)
        np.random.seed(0)
        inputs = place.here().inputs(pipe, self.inputs() if callable(self.inputs) else dict(self.inputs))
        torch.manual_seed(0)
        added = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
        known = inspect.signature(pipe.__call__).parameters
        with place.noise():
            made = pipe(**{**{k: v for k, v in added.items() if k in known}, **inputs})
        made = made[0] if isinstance(made, (tuple, list, diffusers.utils.BaseOutput)) else made
        return levels(made, self.values)


def levels(made: Any, values: tuple[float, float]) -> NDArray[np.uint8]:
    """Images, frames, waves or latents as uint8; what lies outside of `values` is clipped."""
    if isinstance(made, (list, tuple)):
        return np.stack([levels(m, values) for m in made])
    drawn: NDArray[Any] = made.detach().float().cpu().numpy() if isinstance(made, torch.Tensor) else np.asarray(made)
    if drawn.dtype == np.uint8:
        return drawn
    if not np.isfinite(drawn).all():
        # As torch's own failures, where it is torch that draws.
        raise RuntimeError("the pipeline's result is not finite")
    low, high = values
    return (np.clip((drawn - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)


def register(entries: list[Entry]) -> None:
    """Make cases of entries."""
    for entry in entries:
        add(Case(entry.name, entry.about or entry.pipeline, entry.run, pipeline=entry.pipeline))
