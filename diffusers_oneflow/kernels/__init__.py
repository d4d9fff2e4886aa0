"""The native kernel pack: OneFlow ops with kernels of this package, registered with the stock wheel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def find(op: str) -> tuple[Callable[..., Any] | None, bool]:
    """The pack's lowering of an ATen op (or one that the passes put in), or None; and whether it takes weights."""
    # Not at the top: OneFlow must be loaded first.
    from . import elementwise, lowering, moves  # noqa: F401

    return lowering.find(op)
