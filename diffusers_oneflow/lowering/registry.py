"""The table from ATen ops to their lowerings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import Refused, Unsupported

__all__ = ["Refused", "find", "is_lowered", "lowered_ops", "lowering"]

F = TypeVar("F", bound=Callable[..., Any])
_TABLE: dict[str, Callable[..., Any]] = {}


def lowering(*ops: str) -> Callable[[F], F]:
    """Register a function as the lowering of `ops` (``"aten.silu.default"``).

    The function's parameters mirror the ATen schema; tensors come in as OneFlow tensors, everything
    else as torch.export left it (Python scalars, lists, torch dtypes and devices).

    Raises:
        ValueError: an op already has a lowering; a second one would hide the first.
    """

    def register(function: F) -> F:
        for op in ops:
            if op in _TABLE:
                raise ValueError(f"{op} is lowered twice: by {_TABLE[op].__module__} and {function.__module__}")
            _TABLE[op] = function
        return function

    return register


def find(op: str) -> Callable[..., Any]:
    """The lowering of `op`; raises `Unsupported` where there is none, as it does itself for what it refuses."""
    function = _TABLE.get(op)
    if function is None:
        raise Unsupported(op, "no lowering is registered for it")

    @functools.wraps(function)
    def lower(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Refused as refused:
            raise Unsupported(op, str(refused)) from None

    return lower


def is_lowered(op: str) -> bool:
    """True if `op` has a lowering."""
    return op in _TABLE


def lowered_ops() -> list[str]:
    """The names of all ops that have a lowering, sorted."""
    return sorted(_TABLE)
