"""Loads OneFlow: finds out whether it can run here, keeps it quiet, and makes the stock wheel safe."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import cast

from .errors import EngineUnavailable
from .kernels import loader

VERSION = "0.9.0"

# What launchers of several processes (torchrun, accelerate launch) set for torch. OneFlow would read them as well, and wait at
# torch's port for engines that do not join; and it sets them where one is missing, which looks like a launcher to others.
_LAUNCHER = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")

_lock = threading.RLock()
_flow: ModuleType | None = None
_native: ModuleType | None = None


def refusal() -> str | None:
    """Why OneFlow cannot be loaded here, in one sentence that says what to do; None if nothing speaks against it.

    Looks at versions and files only; loads nothing.
    """
    if sys.version_info[:2] != (3, 10):
        return (
            f"OneFlow {VERSION} has wheels for Python 3.10 and older only, and this is Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}: use a Python 3.10 environment for backend='oneflow'"
        )
    if sys.platform != "linux":
        return f"OneFlow {VERSION} has wheels for Linux only, and this is {sys.platform}: use Linux for backend='oneflow'"
    if importlib.util.find_spec("oneflow") is None:
        return f"OneFlow is not installed: pip install oneflow=={VERSION}"
    if importlib.util.find_spec("diffusers_oneflow.runtime._native") is None:
        return "the native runtime of diffusers_oneflow was not built: reinstall it with g++ available"
    return None


def flow() -> ModuleType:
    """The module oneflow, loaded if needed."""
    return _flow if _flow is not None else load()


def native() -> ModuleType:
    """The native runtime (`diffusers_oneflow.runtime._native`), loaded if needed."""
    load()
    return cast(ModuleType, _native)


def load() -> ModuleType:
    """Import OneFlow once and return it.

    Raises:
        EngineUnavailable: with the reason and what to do.
    """
    global _flow, _native
    if _flow is not None:
        return _flow
    with _lock:
        if _flow is None:
            if reason := refusal():
                raise EngineUnavailable(reason)
            with _alone():
                module = _import_oneflow()
            if module.__version__ != VERSION:
                raise EngineUnavailable(f"OneFlow is {module.__version__}: pip install oneflow=={VERSION}")
            _native = _install_runtime()
            with quiet():
                _start(module)
            _flow = module
    return _flow


def _import_oneflow() -> ModuleType:
    os.environ.setdefault("GLOG_minloglevel", "2")
    with quiet() as said:
        try:
            return importlib.import_module("oneflow")
        except Exception as error:  # whatever a broken installation raises is told below
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            detail = f" (it said: {said()})" if said() else ""
    raise EngineUnavailable(
        f"OneFlow {VERSION} is installed but does not load: {reason}{detail}; "
        "it needs nvidia-cublas-cu11, nvidia-cudnn-cu11 8.9, numpy<2 and protobuf 3.20"
    )


def _install_runtime() -> ModuleType:
    from .runtime import _native as module

    parts = ("the cure of its nn.Graph race", "the memory arena", "the clean-up after a build")
    for part, installed in zip(parts, module.install()):
        if installed:
            continue
        raise EngineUnavailable(
            f"this build of OneFlow is not the one of the package index: {part} finds no place in it; "
            f"reinstall with pip install --force-reinstall oneflow=={VERSION}"
        )
    return module


def _start(module: ModuleType) -> None:
    """Configure OneFlow's session and start it; both it and the first op complain of missing GPUs."""
    from oneflow.framework import config_util, session_context

    # One worker thread for all ops: they run one after the other anyway, and each uses all cores.
    config_util._set_resource_attr("cpu_device_num", 1, int)
    session_context.GetDefaultSession().TryInit()
    loader.register()
    # OneFlow's copy of oneDNN reads this at its first op; 1024 primitives, its default, are 10 MB of shapes past.
    with _variable("DNNL_PRIMITIVE_CACHE_CAPACITY", "256"):
        (module.zeros(1) + module.zeros(1)).numpy()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hide from OneFlow that this may be one of several processes, and from others that OneFlow believes it is one of one."""
    before = {name: os.environ.pop(name, None) for name in _LAUNCHER}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable that the user has not set, for a while: torch has a oneDNN of its own."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Keep what libraries write to file descriptor 2 from the user; yields a function that returns its last line."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        saved = os.dup(2)

        def last_line() -> str:
            sink.seek(0)
            lines = sink.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""

        os.dup2(sink.fileno(), 2)
        try:
            yield last_line
        finally:
            os.dup2(saved, 2)
            os.close(saved)
