"""What a device has to bring for graphs to be replayed on it, and the least that any of torch's brings."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Preparations = Sequence[Callable[[], object]]


class Device(Protocol):
    """A device of torch's; everything else is the same for all of them.

    Attributes:
        torch: the device.
    """

    torch: torch.device

    def find(self, op: str) -> Callable[..., Any] | None:
        """A lowering of its own for an op, called with (`Lowered`, node, arguments as `Ref`), or None: torch's op runs."""

    def wake(self) -> None:
        """A graph will be built: what takes long to load may be loaded meanwhile."""

    def require(self, size: int) -> None:
        """See that there is room for a graph of so many bytes, and for its kernels. Raises `torch.OutOfMemoryError`."""

    def capture(
        self, run: Callable[[], None], preparations: Preparations = (), here: Preparations = (), kernels: Preparations = ()
    ) -> Callable[[], None]:
        """What does the same as `run`, on the same memory, as often as it is called; `run` may be called meanwhile.

        Args:
            preparations: may be called before, in any order and at the same time, to compile what `run` needs.
            here: the same, but each thread that calls one of them takes memory.
            kernels: the same, and each does nothing but launch kernels of Triton's.
        """

    def aside(self, work: Callable[[], None]) -> Callable[[], None]:
        """Call `work`, inside `run` of `capture`; what it starts may run beside what comes next until the result is called."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """A context for one run, which comes after the one before, whatever thread that came from."""

    def finish(self) -> None:
        """Wait until no run is under way, whatever stream it is on: what it reads may be freed then."""


class Plain:
    """Any device of torch's, with torch's ops alone: each is called anew in every run."""

    def __init__(self, device: torch.device | str) -> None:
        self.torch = torch.device(device)

    def find(self, op: str) -> Callable[..., Any] | None:
        """No kernels of its own."""
        return None

    def wake(self) -> None:
        """There is nothing to load."""

    def require(self, size: int) -> None:
        """Torch's allocator will say it."""

    def capture(
        self, run: Callable[[], None], preparations: Preparations = (), here: Preparations = (), kernels: Preparations = ()
    ) -> Callable[[], None]:
        """`run` itself."""
        return run

    def aside(self, work: Callable[[], None]) -> Callable[[], None]:
        """Nothing runs beside anything."""
        work()
        return lambda: None

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Torch's own order."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """A run has ended when it returns."""
