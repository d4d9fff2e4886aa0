"""What is changed in OneFlow itself where a script speaks it: its autocast, seeds and generators act on torch as well."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from . import border, engine, generators, no_gpu

# What OneFlow's default generator starts from, as torch's.
_UNSEEDED = 67280421310721


@functools.cache
def install() -> None:
    """Let OneFlow's autocast, seeds and generators act on torch as well. Called once, when a border is first needed."""
    flow: Any = engine.flow()
    if (seed := flow.initial_seed()) != torch.default_generator.initial_seed() and seed != _UNSEEDED:
        torch.manual_seed(seed)  # the script has seeded OneFlow already
    _extend_autocast(flow.autocast)
    # torch's default generator draws for pipelines that are given none.
    flow.manual_seed = _also(flow.manual_seed, torch.manual_seed)
    # OneFlow ends the process where it has no GPU; torch remembers the seed for when there is one.
    for name in ("manual_seed_all", "manual_seed"):
        ours = getattr(flow.cuda, name) if no_gpu.refusal() is None else lambda seed: None
        setattr(flow.cuda, name, _also(ours, getattr(torch.cuda, name)))
    flow.Generator = _of_any_device(flow.Generator)
    no_gpu.install(flow)
    generator = flow._oneflow_internal.Generator
    for name in ("manual_seed", "seed", "set_state"):
        setattr(generator, name, _forgetting(getattr(generator, name)))


def _of_any_device(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Generator(pipe.device)`` as in torch: OneFlow's takes names of devices only."""

    @functools.wraps(original)
    def create_generator(device: object = None) -> Any:
        return original(None if device is None else str(device))

    return create_generator


def _also(original: Callable[..., Any], torchs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def both(seed: int) -> Any:
        torchs(int(seed))
        result = original(seed)
        if result is not None:
            generators.forget(result)
        return result

    return both


def _forgetting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def seeded(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators.forget(self)
        return original(self, *args, **kwargs)

    return seeded


def _extend_autocast(cls: Any) -> None:
    """Let ``oneflow.autocast(...)`` enter ``torch.autocast`` with the same arguments; in place, since scripts hold the class."""
    start, enter, leave = cls.__init__, cls.__enter__, cls.__exit__

    @functools.wraps(start)
    def __init__(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None) -> None:
        self._torchs = torch.autocast(device_type, border.inward(dtype), enabled, cache_enabled)
        # OneFlow knows these two, warns that it has none for the CPU, and knows no dtypes of torch.
        self._ours = device_type in ("cpu", "cuda")
        if self._ours:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="CPU autocast is not supported")
                start(self, device_type, border.outward(dtype), enabled, cache_enabled)

    @functools.wraps(enter)
    def __enter__(self: Any) -> Any:
        self._torchs.__enter__()
        if self._ours:
            enter(self)
        return self

    @functools.wraps(leave)
    def __exit__(self: Any, *error: Any) -> Any:
        if self._ours:
            leave(self, *error)
        return self._torchs.__exit__(*error)

    cls.__init__, cls.__enter__, cls.__exit__ = __init__, __enter__, __exit__
