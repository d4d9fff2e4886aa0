"""Triton's kernels compiled in several processes at once: threads of one process wait for Python's lock, and two of them get on.

What the processes compile lies in Triton's cache on disk, where this one finds it. Whatever goes wrong there, it compiles itself.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Processes, each for two kernels at least; seconds after which they are not waited for any more.
_MOST, _PATIENCE = 16, 60.0
_WORKER = Path(__file__).with_name("ahead_worker.py")
Kernel = dict[str, Any]


def compile_ahead(launches: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Start to compile what `launches` will ask for, each of which launches kernels and does nothing else.

    Returns:
        What waits until they are compiled, or until there is no patience left.
    """
    started: list[subprocess.Popen[bytes]] = []
    if runs_python():
        with contextlib.suppress(Exception):  # no more processes for this user, say: they are compiled here then
            asked = [*collect(launches).values()]
            count = min(_MOST, cores(), len(asked) // 2)
            for number in range(count if count > 1 else 0):
                started.append(_start(asked[number::count]))

    def wait() -> None:
        until = time.monotonic() + _PATIENCE
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()

    return wait


def runs_python() -> bool:
    """Whether what runs here is a Python, of which there can be more processes."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def environment() -> dict[str, str]:
    """Of a process that imports what this one can, and sees no GPU."""
    path = os.pathsep.join(entry for entry in sys.path if isinstance(entry, str) and entry)
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def cores() -> int:
    """How many this process is allowed to run on (cpusets, taskset), which can be fewer than there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux has it
        return os.cpu_count() or 1


def collect(launches: Sequence[Callable[[], object]]) -> dict[str, Kernel]:
    """What `launches` would have Triton compile, by Triton's own description of each; kernels that are compiled already run."""
    found: dict[str, Kernel] = {}
    with _hooked(found):
        for launch in launches:
            with contextlib.suppress(Exception):  # it fails again when it is run, and says so
                launch()
    return found


@contextlib.contextmanager
def _hooked(found: dict[str, Kernel]) -> Iterator[None]:
    from triton import knobs

    before, mine, over = knobs.runtime.jit_cache_hook, threading.get_ident(), threading.Event()

    def hook(*args: Any, **kwargs: Any) -> Any:
        # Of somebody else, who needs it now; or who has put this back where it was while we asked.
        if over.is_set() or threading.get_ident() != mine:
            return before(*args, **kwargs) if before is not None else None
        asked = kwargs["compile"]
        found[asked["specialization_data"]] = _described(kwargs["fn"].jit_function, asked)
        return True

    knobs.runtime.jit_cache_hook = hook
    try:
        yield
    finally:
        over.set()
        knobs.runtime.jit_cache_hook = before


def _described(function: Any, asked: dict[str, Any]) -> Kernel:
    from triton.runtime.driver import driver

    target = driver.active.get_current_target()
    return {
        "module": function.__module__, "path": sys.modules[function.__module__].__file__, "name": function.__name__,
        "signature": asked["signature"], "constants": asked["constants"], "attrs": asked["configs"][0],
        "options": json.loads(asked["specialization_data"])["options"],
        "target": (target.backend, target.arch, target.warp_size),
    }  # fmt: skip


def _start(kernels: list[Kernel]) -> "subprocess.Popen[bytes]":
    from . import kernels as own

    # It imports neither torch nor this package.
    with tempfile.TemporaryFile() as told:  # which nobody waits for, as for a pipe
        pickle.dump({"own": (own.__name__, own.__file__), "kernels": kernels}, told)
        told.seek(0)
        return subprocess.Popen(
            [sys.executable, str(_WORKER)], stdin=told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
