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
_ALWAYS = ("cuda", "pin_memory")
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
    """Put the errors in place, where OneFlow can use no GPU; called once."""
    reason = refusal()
    if reason is None:
        return
    message = f"OneFlow cannot have this on a GPU: {reason}; keep it on the CPU, pipelines take it from there"
    for place, names in ((flow, _FACTORIES), (flow.Tensor, _METHODS)):
        for name in names:
            if hasattr(place, name):
                setattr(place, name, _guarded(getattr(place, name), message))
    for name in _ALWAYS:
        setattr(flow.Tensor, name, _refused(getattr(flow.Tensor, name), message))
    for name in [name for name in dir(flow.cuda) if name.endswith("Tensor")]:
        # A type, of which there is nothing.
        setattr(flow.cuda, name, type(name, (), {"__new__": _refused(object.__new__, message)}))
    for name in _QUESTIONS:
        if hasattr(flow.cuda, name):
            setattr(flow.cuda, name, _asked(getattr(torch.cuda, name)))


def _refused(original: Callable[..., Any], message: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(message)

    return refused


def _guarded(original: Callable[..., Any], message: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if any(map(_names_gpu, (*args, *kwargs.values()))):
            raise RuntimeError(message)
        return original(*args, **kwargs)

    return guarded


def _names_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition(":")[0] == "cuda"
    return isinstance(value, engine.flow().device) and value.type == "cuda"


def _asked(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A question about GPUs, for torch to answer."""

    @functools.wraps(theirs)
    def asked(*args: Any, **kwargs: Any) -> Any:
        return theirs(*(str(a) if isinstance(a, engine.flow().device) else a for a in args), **kwargs)

    return asked
