"""What ``torch.autocast`` means for a graph: its casts are ops of the program, which is captured under it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Autocast:
    """That autocast is on for the device of a model.

    Attributes:
        device: its kind, as torch names it.
        dtype: of products, convolutions and attention.
    """

    device: str
    dtype: torch.dtype

    def on(self) -> contextlib.AbstractContextManager[object]:
        """A context to capture in. Without torch's table of weights that were cast already, which traces must not fill."""
        return torch.autocast(self.device, self.dtype, cache_enabled=False)

    def refusal(self, weights: Iterable[torch.Tensor]) -> str | None:
        """Why a module of these weights stays in torch: those that autocast casts would be cast again in every call."""
        # Vectors are those of norms and biases, which take no time.
        if all(w.dtype == self.dtype for w in weights if w.is_floating_point() and w.ndim > 1):
            return None
        name = str(self.dtype).removeprefix("torch.")
        return f"torch.autocast is on, and would cast weights in every call: load the model in {name}"


def current(device: torch.device) -> Autocast | None:
    """Autocast as the calling thread has it on `device`, if it is on there."""
    # Weights that are offloaded have a device that autocast does not know (meta).
    kind = "cuda" if device.type == "cuda" else "cpu"
    return Autocast(kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def on(state: Autocast | None) -> contextlib.AbstractContextManager[object]:
    """A context with autocast as `state` says."""
    return contextlib.nullcontext() if state is None else state.on()


def off(state: Autocast | None) -> contextlib.AbstractContextManager[object]:
    """A context without it: what computes a graph casts nothing by itself."""
    return contextlib.nullcontext() if state is None else torch.autocast(state.device, enabled=False)
