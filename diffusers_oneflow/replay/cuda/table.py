"""The table from ops to their lowerings on CUDA."""

from collections.abc import Callable

TABLE: dict[str, Callable] = {}


def on_cuda(*ops: str) -> Callable[[Callable], Callable]:
    """Register a function as the lowering of `ops` on CUDA: called with (`Lowered`, node, the op's arguments).

    Raises:
        ValueError: the op has one already.
    """

    def register(function: Callable) -> Callable:
        for op in ops:
            if op in TABLE:
                raise ValueError(f"{op} is lowered twice on CUDA: by {TABLE[op].__name__} and {function.__name__}")
            TABLE[op] = function
        return function

    return register
