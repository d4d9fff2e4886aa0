"""Kernels of flash-attn-4 and quack-kernels, compiled in processes: Python makes each of them in 1.5 to 2 seconds (CuTe DSL).

A process that imports both packages is started when a model begins to be captured. Once it is known what the graph needs, it
forks for each kernel, and what these compile lies in the packages' own caches on disk, where this process finds it. Whatever
goes wrong there is compiled here.
"""

import atexit
import contextlib
import functools
import os
import pickle
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...cache import directory
from . import ahead

_WORKER = Path(__file__).with_name("cute_worker.py")
# Cores from which it is worth a process of its own; seconds after which it is not waited for any more.
_CORES, _PATIENCE = 4, 60.0
# Of the packages' variables.
_FLASH, _QUACK = "FLASH_ATTENTION_CUTE_DSL_CACHE", "QUACK_CACHE"
# What a pipe takes at once or not at all.
_MOST_BYTES = 4096


class Deferred(Exception):
    """Another process compiles the kernel that was asked for."""


class Compiler:
    """The process, which lives until nothing was asked of it for a while, or this one ends.

    Args:
        device: the GPU to compile for, which the process does not see.
    """

    def __init__(self, device: torch.device) -> None:
        self._owner, self._asked, self._answers = os.getpid(), set[object](), 0
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(Path(__file__).parents[3])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, env=_environment(device),
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        atexit.register(self._end)

    def lives(self) -> bool:
        """Whether it can be asked: not after a fork of this process, whose answers it would take."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, key: object, name: str, args: tuple[Any, ...]) -> bool:
        """Have it call ``flash.attention`` or ``quack.multiply`` on tensors like these; whether it was told, now or before.

        Args:
            key: what of `args` makes another kernel.
        """
        if key not in self._asked:
            told = pickle.dumps((name, list(map(_described, args))))
            whole = struct.pack("<I", len(told)) + told
            try:
                if len(whole) > _MOST_BYTES or os.write(self._to, whole) != len(whole):
                    return False
            except OSError:  # it has ended, or does not listen and the pipe is full
                return False
            self._asked.add(key)
        return True

    def _end(self) -> None:
        if self._owner == os.getpid():
            self._process.terminate()
            self._process.communicate()

    def wait(self) -> None:
        """Until all is compiled, or there is no patience left: then what is late is compiled by both."""
        until = time.monotonic() + _PATIENCE
        while self._answers < len(self._asked):
            if not select.select([self._from], [], [], max(0.0, until - time.monotonic()))[0]:
                break
            answers = os.read(self._from, 1024)
            if not answers:  # it has ended
                break
            self._answers += len(answers)


# By device; and, of the thread that builds, what it has asked.
_compilers: dict[torch.device, Compiler] = {}
_here = threading.local()


def start(device: torch.device) -> None:
    """Start the process, unless it is there, or what it compiled could not be found here."""
    lives = device in _compilers and _compilers[device].lives()
    frozen = not sys.executable or getattr(sys, "frozen", False)  # then what runs here is no Python
    if lives or frozen or ahead.cores() < _CORES or not _shares():
        return
    with contextlib.suppress(OSError):  # no more processes for this user, say
        _compilers[device] = Compiler(device)


def ask(device: torch.device, calls: Sequence[Callable[[], object]]) -> bool:
    """Call all of `calls`, each of which ends where it needs a kernel of these packages; whether one did."""
    with _deferring(device) as is_left:
        return any([is_left(call) for call in calls])  # all of them


def twice(device: torch.device, run: Callable[[], object], load: Callable[[], object]) -> None:
    """Call `run`, and, if it left out kernels of these packages, again when they are compiled.

    Args:
        load: imports what finds them.
    """
    if ask(device, [run]):
        load()
        _compilers[device].wait()
        run()


@contextlib.contextmanager
def _deferring(device: torch.device) -> Iterator[Callable[[Callable[[], object]], bool]]:
    """Within, kernels of `device` are asked for, not compiled, in this thread.

    Yields:
        What calls a function, and says whether something was asked for in it that is not compiled.
    """
    compiler = _compilers.get(device)
    _here.compiler, _here.count = compiler if compiler is not None and compiler.lives() else None, 0

    def call(function: Callable[[], object]) -> bool:
        before = _here.count
        with contextlib.suppress(Deferred):
            function()
        return bool(_here.count > before)

    try:
        yield call
    finally:
        _here.compiler = None


def defer(key: object, name: str, *args: Any) -> None:
    """Called before a package is: within `ask` another process is asked instead.

    Raises:
        Deferred: it was.
    """
    compiler: Compiler | None = getattr(_here, "compiler", None)
    if compiler is not None and compiler.ask(key, name, args):
        _here.count += 1
        raise Deferred(name)


@contextlib.contextmanager
def caches() -> Iterator[None]:
    """Within, the packages are imported: with caches on disk, where their user has not chosen others."""
    mine = {name: value for name, value in _variables().items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def _shares() -> bool:
    """Whether this process finds what another one compiles: not if its user wants no caches, or somebody else imported these."""
    chosen = _chosen()
    for module, folder in (("flash_attn.cute.cache_utils", _FLASH), ("quack.cache", _QUACK)):
        enabled = chosen[f"{folder}_ENABLED"] == "1"
        there = sys.modules.get(module)
        if not enabled or (there is not None and chosen[f"{folder}_DIR"] not in vars(there).values()):
            return False
    return True


def _chosen() -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in _variables().items()}


def _described(arg: Any) -> Any:
    """Of a tensor its sizes, strides and dtype."""
    return (tuple(arg.shape), arg.stride(), arg.dtype) if isinstance(arg, torch.Tensor) else arg


@functools.cache
def _variables() -> dict[str, str]:
    folder = directory()
    if folder is None:  # nothing is to be kept
        folder = Path(tempfile.mkdtemp(prefix="diffusers_oneflow-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {
        f"{_FLASH}_ENABLED": "1", f"{_FLASH}_DIR": str(folder / "flash-attn-4"),
        f"{_QUACK}_ENABLED": "1", f"{_QUACK}_DIR": str(folder / "quack-kernels"),
    }  # fmt: skip


def _environment(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    number = f"{properties.major}{properties.minor}"
    arch = {
        "CUTE_DSL_ARCH": f"sm_{number}a", "FLASH_ATTENTION_ARCH": f"sm_{number}", "QUACK_ARCH": number,
        "FLASH_ATTENTION_NUM_SMS": str(properties.multi_processor_count),
    }  # fmt: skip
    # No GPU: a context would take memory of it, and could not be forked.
    rest = {"CUDA_VISIBLE_DEVICES": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    path = os.pathsep.join(entry for entry in sys.path if isinstance(entry, str) and entry)
    return {**arch, **os.environ, **_chosen(), **rest, "PYTHONPATH": path}
