"""Calls that a pipeline makes of its models, recorded to be made again, and the dtypes of the models then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import signature
from .backend import models

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Dtypes = Mapping[str, torch.dtype]


@dataclass(frozen=True)
class Call:
    """A recorded call of a module, and the dtypes of its parameters then."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dtypes: Dtypes


def record(
    pipe: Any, draw: Callable[[Any], NDArray[np.uint8]], fallbacks: Mapping[str, str]
) -> tuple[dict[str, Call], NDArray[Any]]:
    """The last call of each component that is to be judged, in a run of the pipeline in torch, and its images."""
    calls: dict[str, Call] = {}
    judgeable = {path: module for path, module in models(pipe).items() if path not in fallbacks}
    hooks = [module.register_forward_pre_hook(_hook(calls, path), with_kwargs=True) for path, module in judgeable.items()]
    try:
        expected = draw(pipe)
        if "vae.encoder" in judgeable and "vae.encoder" not in calls and _images(pipe.vae, expected):
            # Drawing from text alone does not call it: it gets the images.
            with torch.no_grad():
                pipe.vae.encode(
                    (torch.from_numpy(expected).permute(0, 3, 1, 2).float() / 127.5 - 1).to(pipe.vae.device, pipe.vae.dtype)
                )
    finally:
        for hook in hooks:
            hook.remove()
    return calls, expected


def _images(vae: Any, drawn: NDArray[Any]) -> bool:
    """Whether what was drawn are images that the VAE can encode; one of videos cannot."""
    if any(isinstance(module, torch.nn.Conv3d) for module in vae.modules()):
        return False
    return drawn.ndim == 4 and drawn.shape[3] == getattr(vae.config, "in_channels", 3)


def _hook(calls: dict[Any, Any], path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        flat = signature.flatten((args, kwargs))
        args, kwargs = signature.rebuild(flat.spec, [t.detach().clone() for t in flat.tensors])
        calls[path] = Call(args, kwargs, dtypes_of(module))

    return hook


def dtypes_of(module: torch.nn.Module) -> Dtypes:
    """The dtypes of its parameters, by name."""
    return {name: parameter.dtype for name, parameter in module.named_parameters()}


@contextlib.contextmanager
def in_dtypes(module: torch.nn.Module, dtypes: Dtypes) -> Iterator[None]:
    """Meanwhile the parameters have these dtypes, by name: some pipelines cast a VAE up only to decode."""
    changed = [(p, p.data, dtypes[name]) for name, p in module.named_parameters() if p.dtype != dtypes.get(name, p.dtype)]
    for parameter, data, dtype in changed:
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data, _ in changed:
            parameter.data = data
