"""Kernels of flash-attn-4 and quack-kernels, compiled in processes: Python makes each of them in 1.5 to 4 seconds (CuTe DSL).

A process that imports both packages is started when a model begins to be captured. Once it is known what the graph needs, it
forks for each kernel, and what these compile lies in the packages' own caches on disk, where this process finds it. Whatever
goes wrong there is compiled here.
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pickle
import select
import shutil
import signal
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

from ...cache import directory, version, write_whole
from . import ahead

_WORKER = Path(__file__).with_name("cute_worker.py")
# Cores from which it is worth a process of its own; seconds after which it is not waited for any more.
_CORES, _PATIENCE = 4, 60.0
# Of the packages' variables.
_FLASH, _QUACK = "FLASH_ATTENTION_CUTE_DSL_CACHE", "QUACK_CACHE"
# What those kernels depend on.
_PACKAGES = ("flash-attn-4", "quack-kernels", "nvidia-cutlass-dsl", "apache-tvm-ffi")
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
        # In a session of its own: Ctrl-C is not for it, and it ends with all that it has forked.
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(Path(__file__).parents[3])], bufsize=0, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment(device),
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._to.fileno(), False)
        atexit.register(self.end)
        self._record = _record(device)
        self._kept = _kept(self._record)

    def lives(self) -> bool:
        """Whether it can be asked: not after a fork of this process, whose answers it would take."""
        return self._owner == os.getpid() and self._process.poll() is None

    def keeps(self, key: object) -> bool:
        """Whether an earlier process had it compiled: then it need not be waited for."""
        return repr(key) in self._kept

    def ask(self, key: object, name: str, args: tuple[Any, ...]) -> bool:
        """Have it call ``flash.attention`` or ``quack.multiply`` on tensors like these; whether it was told, now or before.

        Args:
            key: what of `args` makes another kernel.
        """
        if key not in self._asked:
            told = pickle.dumps((name, list(map(_described, args))))
            whole = struct.pack("<I", len(told)) + told
            try:
                if len(whole) > _MOST_BYTES or os.write(self._to.fileno(), whole) != len(whole):
                    return False
            except (OSError, ValueError):  # it has ended, or does not listen and the pipe is full
                return False
            self._asked.add(key)
        return True

    def wait(self) -> None:
        """Until all is compiled. Who takes longer than there is patience is ended, and the rest compiled here."""
        until, answers = time.monotonic() + _PATIENCE, select.poll()
        answers.register(self._from, select.POLLIN)
        while self._answers < len(self._asked):
            left = until - time.monotonic()
            told = os.read(self._from.fileno(), 1024) if left > 0 and answers.poll(1000 * left) else b""
            if not told:  # it has ended, or there is no patience left
                self.end()
                return
            self._answers += len(told)
        _there.update(self._asked)
        with contextlib.suppress(OSError):  # the next process asks again
            write_whole(self._record, json.dumps(sorted(self._kept | set(map(repr, self._asked)))).encode())

    def end(self) -> None:
        """End it, and whatever it compiles."""
        atexit.unregister(self.end)
        if self.lives():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._to.close()
        self._from.close()


# By device. What this process has, or is about to compile itself. Of the thread that builds, whom it asks, and what for.
_compilers: dict[torch.device, Compiler] = {}
_there: set[object] = set()
_here = threading.local()
_STARTING, _CHOOSING = threading.Lock(), threading.Lock()
# Of whoever imports the packages or calls one, whose compilers are not for several threads: an import changes parts of another.
USING = threading.RLock()
# The variables that are set for imports that are under way, and how many of these there are.
_set: list[str] = []
_importing = 0


@functools.cache
def installed(package: str) -> bool:
    """Whether a package is installed; it takes seconds to import these, and they are when they are needed."""
    return version(package) is not None


def start(device: torch.device) -> None:
    """Start the process, unless it is there, or what it compiled could not be found here."""
    with _STARTING:
        before = _compilers.get(device)
        lives = before is not None and before.lives()
        if lives or not ahead.runs_python() or not hasattr(os, "fork") or ahead.cores() < _CORES or not _shares():
            return
        if before is not None:
            before.end()
        with contextlib.suppress(OSError):  # no more processes for this user, say
            _compilers[device] = Compiler(device)


def ask(device: torch.device, calls: Sequence[Callable[[], object]], told: Callable[[str], object] | None = None) -> set[str]:
    """Call all of `calls`; kernels of these packages that are not there are asked for, and `defer` raises.

    Args:
        told: called with each name, see below, the first time. With it nothing is to be computed: `defer` raises for kernels that
            an earlier process had compiled, too.

    Returns:
        The names that `defer` raised for.
    """
    compiler = _compilers.get(device)
    names: set[str] = set()
    _here.compiler, _here.names = compiler if compiler is not None and compiler.lives() else None, names
    _here.told = told
    try:
        for call in calls:
            with contextlib.suppress(Deferred):
                call()
        return names
    finally:
        _here.compiler = _here.told = None


def twice(device: torch.device, run: Callable[[], object], load: Callable[[set[str]], object]) -> None:
    """Call `run`, and, if it left out kernels of these packages, again when they are compiled.

    Args:
        run: goes on without what is `Deferred`.
        load: imports what finds them; it gets what `ask` returns.
    """
    if left := ask(device, [run]):
        load(left)
        _compilers[device].wait()
        run()


def defer(key: object, name: str, *args: Any) -> None:
    """Called before a package is: within `ask` another process is asked instead, unless this one has the kernel.

    Raises:
        Deferred: it was.
    """
    compiler: Compiler | None = getattr(_here, "compiler", None)
    if compiler is None or key in _there:
        _there.add(key)
        return
    told = _here.told
    if told is not None if compiler.keeps(key) else compiler.ask(key, name, args):
        if told is not None and name not in _here.names:
            told(name)
        _here.names.add(name)
        raise Deferred(name)
    _there.add(key)


@contextlib.contextmanager
def caches() -> Iterator[None]:
    """Within, in whatever thread, the packages would be imported with caches on disk, where their user has not chosen others.

    Threads that might ask for variables meanwhile, as C libraries may, are started within: setting one moves them all.
    """
    global _importing
    with _CHOOSING:
        if not _importing:
            mine = {name: value for name, value in _variables().items() if name not in os.environ}
            os.environ.update(mine)
            _set[:] = mine
        _importing += 1
    try:
        yield
    finally:
        with _CHOOSING:
            _importing -= 1
            for name in _set if not _importing else ():
                os.environ.pop(name, None)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Within, the packages are imported, with `caches`, and by one thread at a time: half done they would be taken for broken."""
    with caches(), USING:
        yield


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


def _variables() -> dict[str, str]:
    """Of both packages; in the process that compiles all are set, and none is made up."""
    names = [f"{package}_{what}" for package in (_FLASH, _QUACK) for what in ("ENABLED", "DIR")]
    if all(name in os.environ for name in names):
        return {name: os.environ[name] for name in names}
    folder = str(_folder())
    return dict(zip(names, ("1", os.path.join(folder, "flash-attn-4"), "1", os.path.join(folder, "quack-kernels"))))


def _record(device: torch.device) -> Path:
    """Where it is written which kernels lie in the packages' caches."""
    properties = torch.cuda.get_device_properties(device)
    versions = (sys.version_info[:2], torch.__version__, *map(version, _PACKAGES))
    said = repr((versions, properties.major, properties.minor, sorted(_chosen().items())))
    return _folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"


def _kept(path: Path) -> set[str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or a damaged one
        return set()
    return {key for key in found if isinstance(key, str)} if isinstance(found, list) else set()


@functools.cache
def _folder() -> Path:
    """The user's own, whatever folder programs are kept in: what lies there is run. One for this process where that cannot be."""
    from platformdirs import user_cache_path

    if directory() is not None:
        folder = user_cache_path("diffusers_oneflow", appauthor=False) / "kernels"
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(folder / "lock", "w") as file:  # both packages lock theirs, which some network drives cannot
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return folder
    folder, owner = Path(tempfile.mkdtemp(prefix="diffusers_oneflow-")), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


def _environment(device: torch.device) -> dict[str, str]:
    properties = torch.cuda.get_device_properties(device)
    number = f"{properties.major}{properties.minor}"
    arch = {
        "CUTE_DSL_ARCH": f"sm_{number}a", "FLASH_ATTENTION_ARCH": f"sm_{number}", "QUACK_ARCH": number,
        "FLASH_ATTENTION_NUM_SMS": str(properties.multi_processor_count),
    }  # fmt: skip
    # It sees no GPU: a context would take memory of it, and could not be forked.
    return {**arch, **_variables(), **ahead.environment(), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
