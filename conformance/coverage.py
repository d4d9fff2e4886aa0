"""Pipelines that the installed diffusers exports and no case covers."""

import inspect
import typing
from typing import Any

import diffusers
import torch

from .registry import CASES

NO_REASON = "not covered"
_TRANSFORMERS = "fails in torch with transformers 5: it asks {} for what it has no more"
_GRADIENTS = "differentiates through its UNet, which always runs in torch"
# What cannot be seen from the classes.
REASONS = {
    "StableDiffusionAttendAndExcitePipeline": _GRADIENTS,
    "StableDiffusionPix2PixZeroPipeline": _GRADIENTS,
    "CosmosTextToWorldPipeline": "needs torchvision",
    "I2VGenXLPipeline": _TRANSFORMERS.format("CLIP"),
    "MusicLDMPipeline": _TRANSFORMERS.format("CLAP"),
}
# Needed by all of diffusers' pipelines, or by this package.
_INSTALLED = {"torch", "transformers"}
_ASIDE = ("safety_checker", "watermark")


def not_covered() -> dict[str, str]:
    """Class -> why it has no case, for every pipeline class that diffusers exports without one."""
    covered = {case.pipeline for case in CASES.values()}
    classes = pipelines()
    # Of several classes with the same models the one with the shortest name stays.
    twins = {models(classes[name]): name for name in sorted(covered & set(classes), key=len, reverse=True)}
    return {name: _reason(name, made, twins) for name, made in classes.items() if name not in covered}


def pipelines() -> dict[str, type[Any]]:
    """Name -> class of all pipelines that diffusers exports, those included that stand for missing packages."""
    found = {}
    for name in dir(diffusers):
        try:
            made = getattr(diffusers, name) if "Pipeline" in name else None
        except (ImportError, RuntimeError):  # a pipeline whose packages are broken is still one that is not covered
            found[name] = type(name, (), {})
            continue
        if isinstance(made, type) and made is not diffusers.DiffusionPipeline:
            standing_in = hasattr(made, "_backends") and not name.startswith("AutoPipeline")
            modular = issubclass(made, diffusers.ModularPipeline) and made is not diffusers.ModularPipeline
            if standing_in or modular or issubclass(made, diffusers.DiffusionPipeline):
                found[name] = made
    return found


def models(pipeline: type[Any]) -> frozenset[str]:
    """The model classes in the annotations of a pipeline's constructor, or in a modular one's blocks.

    Without what only looks at the result.
    """
    found = set()
    if issubclass(pipeline, diffusers.ModularPipeline):
        blocks = getattr(diffusers, pipeline.default_blocks_name)()
        return frozenset(name for part in blocks.expected_components for name in _classes(part.type_hint))
    for name, parameter in inspect.signature(pipeline.__init__).parameters.items():
        if not any(part in name for part in _ASIDE):
            found.update(_classes(parameter.annotation))
    return frozenset(found)


def _classes(annotation: Any) -> set[str]:
    if isinstance(annotation, type) and issubclass(annotation, torch.nn.Module):
        return {annotation.__name__}
    return {name for part in typing.get_args(annotation) for name in _classes(part)}


def _reason(name: str, pipeline: type[Any], twins: dict[frozenset[str], str]) -> str:
    if name in REASONS:
        return REASONS[name]
    if missing := [b for b in getattr(pipeline, "_backends", ()) if b not in _INSTALLED]:
        return f"needs {', '.join(missing)}"
    if (held := models(pipeline)) and held in twins:
        return f"same model classes as {twins[held]}"
    return NO_REASON
