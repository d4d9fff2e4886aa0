"""Triton's kernels compiled in several processes at once: threads of one process wait for Python's lock, and two of them get on.

What the processes compile lies in Triton's cache on disk, where this one finds it. Whatever goes wrong there, it compiles itself.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Processes; kernels below which none is started; seconds after which one is not waited for any more.
_MOST, _FEWEST, _PATIENCE = 8, 3, 60.0
_WORKER = Path(__file__).with_name("ahead_worker.py")
Kernel = dict[str, Any]


def compile_ahead(launches: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Start to compile what `launches` will ask for, each of which launches kernels and does nothing else.

    Returns:
        What waits until they are compiled.
    """
    asked = [kernel for _, kernel in sorted(collect(launches).items())]
    count = min(_MOST, os.cpu_count() or 1, len(asked) // 2)
    if len(asked) < _FEWEST or count < 2:
        return lambda: None
    started = []
    for number in range(count):
        with contextlib.suppress(OSError):  # no more processes for this user
            started.append(_start(asked[number::count]))

    def wait() -> None:
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            if process.poll() is None:
                process.kill()
                process.wait()

    return wait


def collect(launches: Sequence[Callable[[], object]]) -> dict[str, Kernel]:
    """What `launches` would have Triton compile, by what tells one from another; kernels that are compiled already run."""
    found: dict[str, Kernel] = {}
    with _hooked(found):
        for launch in launches:
            with contextlib.suppress(Exception):  # it fails again when it is run, and says so
                launch()
    return found


@contextlib.contextmanager
def _hooked(found: dict[str, Kernel]) -> Iterator[None]:
    from triton import knobs

    before, mine = knobs.runtime.jit_cache_hook, threading.get_ident()

    def hook(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != mine:  # of somebody else, who needs it now
            return before(*args, **kwargs) if before is not None else None
        kernel = _described(kwargs["fn"].jit_function, kwargs["compile"])
        found[repr(sorted((key, str(value)) for key, value in kernel.items()))] = kernel
        return True

    knobs.runtime.jit_cache_hook = hook
    try:
        yield
    finally:
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

    # It imports neither torch nor this package, and sees no GPU.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as pipe:  # it has ended
        pickle.dump({"own": (own.__name__, own.__file__), "kernels": kernels}, pipe)
    return process
