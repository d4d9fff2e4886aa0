"""One small function per ATen op, from torch's meaning to OneFlow ops.

Importing this package imports OneFlow: load the engine first (`engine.load`).
"""

from __future__ import annotations

from . import (  # noqa: F401
    arithmetic,
    attention,
    conv,
    elementwise,
    factory,
    indexing,
    logic,
    matmul,
    norm,
    padding,
    reduction,
    resample,
    shape,
)
from .registry import find, is_lowered, lowered_ops, lowering

__all__ = ["find", "is_lowered", "lowered_ops", "lowering"]
