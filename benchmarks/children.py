"""Child processes that a benchmark measures in, so that peers share nothing and a crash is seen from outside."""

import faulthandler
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

# Spawned, not forked: every child starts without the parent's threads, imports and memory.
_context = multiprocessing.get_context("spawn")
_Result = TypeVar("_Result")


class ChildFailed(RuntimeError):
    """A child has ended by an exception or a signal.

    Attributes:
        signal: name of the signal that killed it, or None.
    """

    def __init__(self, message: str, signal_name: str | None = None) -> None:
        super().__init__(message)
        self.signal = signal_name


class Child:
    """A process that runs ``target(channel, *args)`` and talks over `channel`; a context manager.

    Args:
        target: a function at module level; what it returns comes as the last message.
    """

    def __init__(self, target: Callable[..., Any], *args: Any) -> None:
        self._channel, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, target, args))
        self._process.start()
        # Ours must be the only other end, or the child's death would not close the channel.
        theirs.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error: Any) -> None:
        self._channel.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def send(self, message: object) -> None:
        """Send `message` to the child.

        Raises:
            ChildFailed: it has ended.
        """
        try:
            self._channel.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise self._failure() from None

    def receive(self, seconds: float | None = None) -> tuple[Any, ...]:
        """The next ``(kind, value)``: what the child sent, or ``("result", value)`` when its target returned.

        Args:
            seconds: the most to wait; then the child is killed. None: for ever.

        Raises:
            ChildFailed: it raised, or a signal killed it, or it took too long.
        """
        try:
            if not self._channel.poll(seconds):
                self._process.kill()
                raise ChildFailed(f"nothing came for {seconds:.0f} s")
            kind, value = self._channel.recv()
        except (EOFError, ConnectionResetError):
            raise self._failure() from None
        if kind == "error":
            raise ChildFailed(value)
        return kind, value

    def _failure(self) -> ChildFailed:
        self._process.join()
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return ChildFailed(f"the process was killed by {name}", name)
        return ChildFailed(f"the process ended with exit code {code}")


def _serve(channel: Connection, target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # A crash shows where Python stood.
    faulthandler.enable()
    try:
        channel.send(("result", target(channel, *args)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the parent is gone, or has no more work
    except Exception:
        channel.send(("error", traceback.format_exc()))


def call(target: Callable[..., _Result], *args: Any) -> _Result:
    """``target(*args)`` in a fresh process; `target` is a function at module level.

    Raises:
        ChildFailed: it raised, or a signal killed the process.
    """
    with Child(_apply, target, args) as child:
        result: _Result = child.receive()[1]
    return result


def _apply(channel: Connection, target: Callable[..., _Result], args: tuple[Any, ...]) -> _Result:
    return target(*args)
