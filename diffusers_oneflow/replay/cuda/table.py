"""The table from ops to their lowerings on CUDA."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

TABLE: dict[str, Callable[..., Any]] = {}


def on_cuda(*ops: str) -> Callable[[F], F]:
    """Register a function as the lowering of `ops` on CUDA: called with (`Lowered`, node, the op's arguments).

    Raises:
        ValueError: the op has one already.
    """

    def register(function: F) -> F:
        for op in ops:
            if op in TABLE:
                raise ValueError(f"{op} is lowered twice on CUDA: by {TABLE[op].__name__} and {function.__name__}")
            TABLE[op] = function
        return function

    return register
