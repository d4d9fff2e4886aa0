"""OneFlow's ways to a GPU that it cannot use raise an error; its own code ends the process there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from . import engine

# Those that its last wheel has kernels for, and compiles for no others.
_NEWEST = (8, 9)
_FACTORIES = (
    "tensor", "as_tensor", "ones", "zeros", "empty", "full", "arange", "linspace", "eye", "rand", "randn", "randint", "randperm",
    "normal", "ones_like", "zeros_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "Generator",
)  # fmt: skip
_METHODS = ("to", "new_ones", "new_zeros", "new_empty", "new_full", "new_tensor")
# What torch says of GPUs just as well.
_QUESTIONS = ("get_device_name", "get_device_properties", "get_device_capability", "current_device", "synchronize", "empty_cache")


@functools.cache
def refusal() -> str | None:
    """Why OneFlow itself can make no tensors on a GPU here; None if it can. Graphs of this package do not need that."""
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    capability = torch.cuda.get_device_capability()
    if capability > _NEWEST:
        return f"OneFlow 0.9.0 has no kernels for a GPU of compute capability {capability[0]}.{capability[1]}"
    return None


def install(flow: Any) -> None:
    """Put the errors in place; called once."""
    for name in _FACTORIES:
        if hasattr(flow, name):
            setattr(flow, name, _guarded(getattr(flow, name)))
    for name in _METHODS:
        if hasattr(flow.Tensor, name):
            setattr(flow.Tensor, name, _guarded(getattr(flow.Tensor, name)))
    for name in ("cuda", "pin_memory"):
        setattr(flow.Tensor, name, _guarded(getattr(flow.Tensor, name), always=True))
    if refusal() is not None:
        for name in [name for name in dir(flow.cuda) if name.endswith("Tensor")]:
            setattr(flow.cuda, name, _absent(name))
    for name in _QUESTIONS:
        if hasattr(flow.cuda, name):
            setattr(flow.cuda, name, _asked(getattr(flow.cuda, name), getattr(torch.cuda, name)))


def _absent(name: str) -> type:
    """A type of tensors on a GPU, of which there are none."""

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(_message())

    return type(name, (), {"__new__": __new__})


def _message() -> str:
    return f"OneFlow cannot have this on a GPU: {refusal()}; keep it on the CPU, pipelines take it from there"


def _guarded(original: Callable[..., Any], always: bool = False) -> Callable[..., Any]:
    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if (always or any(map(_names_gpu, (*args, *kwargs.values())))) and refusal() is not None:
            raise RuntimeError(_message())
        return original(*args, **kwargs)

    return guarded


def _names_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition(":")[0] == "cuda"
    return isinstance(value, engine.flow().device) and value.type == "cuda"


def _asked(original: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A question about GPUs, for torch where OneFlow has none."""

    @functools.wraps(original)
    def asked(*args: Any, **kwargs: Any) -> Any:
        if refusal() is None:
            return original(*args, **kwargs)
        return theirs(*(str(a) if isinstance(a, engine.flow().device) else a for a in args), **kwargs)

    return asked
