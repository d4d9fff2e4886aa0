"""The backend that `parity` judges: OneFlow, or any other of the entry-point group ``diffusers.backends``.

What it takes from a backend called NAME:

- ``pipe.to(backend=NAME)`` lets the models of any DiffusionPipeline run on it, ``pipe.to(backend="torch")`` takes them back;
- meanwhile each model can be called where it was: ``pipe.unet(...)``, ``pipe.vae.decoder(...)``;
- optional: ``fallbacks(pipe) -> dict[str, str]`` on the registered object, path -> reason for the models of which a call
  ran in torch since they were attached. Without it a model that runs in torch passes for one that runs on the backend.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline

from . import plugin
from .config import OneFlowConfig

_NAME = contextvars.ContextVar("judged backend", default="oneflow")
_QUIET = OneFlowConfig(progress=False)
_CONFIG = contextvars.ContextVar("OneFlow's options", default=_QUIET)


def name() -> str:
    """The backend that is judged now."""
    return _NAME.get()


@contextlib.contextmanager
def judging(backend: str, config: OneFlowConfig | None = None) -> Iterator[None]:
    """Judge `backend` meanwhile.

    Args:
        config: options for OneFlow; those of an outer `judging` stay by default.

    Raises:
        ValueError: no package offers it.
    """
    plugin.find(backend)
    token, options = _NAME.set(backend), _CONFIG.set(config or _CONFIG.get())
    try:
        yield
    finally:
        _NAME.reset(token)
        _CONFIG.reset(options)


def attach(pipe: DiffusionPipeline) -> None:
    """Let `pipe` run on the judged backend; what it raises goes through."""
    pipe.to(backend=name(), backend_config=_CONFIG.get() if name() == "oneflow" else None)


def detach(pipe: DiffusionPipeline) -> None:
    """Give `pipe` back to torch."""
    pipe.to(backend="torch")


def fallbacks(pipe: DiffusionPipeline) -> dict[str, str]:
    """Path -> reason for the models that ran in torch, as far as the backend tells."""
    tell = getattr(plugin.find(name()), "fallbacks", None)
    return dict(tell(pipe)) if tell is not None else {}


class Alone(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not followed
    """A pipeline of one model, so that backends need to know of nothing else."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.register_modules(model=model)
