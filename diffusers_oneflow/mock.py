"""OneFlow's mock torch with real libraries: a script says ``import torch`` and gets OneFlow, diffusers gets torch.

``eval $(oneflow-mock-torch)`` puts a folder with a package named `torch` first on PYTHONPATH, for all modules alike, and
diffusers needs much that OneFlow lacks. `start` takes the folder off the path again and decides by the module that
imports: the standard library, everything in site-packages and the libraries of `_LIBRARIES` get torch; all others, the
script and its own modules, get a `Face` of OneFlow. `mock_libraries` translates what is passed between the two,
and `mock_names` has the names of torch for which OneFlow's own would not do.

A line in ``diffusers_oneflow_mock.pth`` calls `start` where the folder is on the path, before the script begins;
``diffusers-oneflow run script.py`` calls it itself. This module imports nothing but the standard library.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import os
import site
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, cast

from . import mock_names

FOLDER = os.path.join("oneflow", "mock_torch")

# Installed from a working copy, say, they are not in site-packages.
_LIBRARIES = {
    "torch", "torchvision", "torchaudio", "functorch", "triton", "diffusers", "transformers", "accelerate", "peft", "optimum",
    "safetensors", "huggingface_hub", "tokenizers", "datasets", "bitsandbytes", "xformers", "timm", "kornia", "controlnet_aux",
    "diffusers_modules", "transformers_modules", "oneflow", "diffusers_oneflow",
}  # fmt: skip

_started = False


def start() -> None:
    """Separate the two worlds, in this process from now on. Idempotent."""
    global _started
    if _started:
        return
    from . import mock_libraries, plugin

    sys.path[:] = [p for p in sys.path if not _is_folder(p)]
    builtins.__import__ = _importing(builtins.__import__)
    importlib.import_module = _importing_module(importlib.import_module)
    plugin.after.update(mock_libraries.AFTER)
    plugin.autoload()
    _started = True


def _is_folder(path: str) -> bool:
    return os.path.normpath(path).endswith(FOLDER) if path else False


def folder() -> str | None:
    """The folder that ``oneflow-mock-torch`` puts on PYTHONPATH; None without OneFlow."""
    spec = importlib.util.find_spec("oneflow")
    return os.path.join(os.path.dirname(spec.origin), "mock_torch") if spec and spec.origin else None


def is_script(names: Mapping[str, Any]) -> bool:
    """True if these are the globals of a module that sees OneFlow as torch."""
    if not _started:
        return False
    return _is_script(str(names.get("__name__", "")).partition(".")[0], names.get("__file__"))


@functools.lru_cache(maxsize=4096)
def _is_script(package: str, file: str | None) -> bool:
    if package in _LIBRARIES or package in sys.builtin_module_names or package in ("importlib", "zipimport"):
        return False
    if file is None:  # typed, or given with -c
        return True
    path = os.path.realpath(file)
    return not any(path.startswith(place) for place in _installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    """Where the standard library and installed packages lie."""
    places = {os.path.dirname(os.__file__), *site.getsitepackages(), site.getusersitepackages()}
    places |= {p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")}
    return tuple(os.path.realpath(p) + os.sep for p in places)


def _is_torch(name: str) -> bool:
    return name == "torch" or name.startswith("torch.")


def _importing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def __import__(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and globals is not None and _is_torch(name) and is_script(globals):
            module = face(name)
            return module if fromlist else face("torch")
        return original(name, globals, locals, fromlist, level)

    return __import__


def _importing_module(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def import_module(name: str, package: str | None = None) -> Any:
        if _is_torch(name) and is_script(sys._getframe(1).f_globals):
            return face(name)
        return original(name, package)

    return import_module


class MissingInOneFlow(AttributeError, NotImplementedError):
    """Neither OneFlow nor torch has that; both kinds, since OneFlow's own mock torch raises the second."""


class Face(types.ModuleType):
    """A module of OneFlow under torch's name. What OneFlow lacks comes from torch, and takes OneFlow's tensors."""

    def __init__(self, name: str, ours: Any) -> None:
        super().__init__(name, getattr(ours, "__doc__", None))
        self.__dict__["_ours"] = ours
        # Else the import system takes it for no package.
        self.__dict__["__path__"] = []

    def __getattr__(self, name: str) -> Any:
        ours = self.__dict__["_ours"]
        value = getattr(ours, name, None)
        if (make := mock_names.OVERRIDES.get(f"{self.__name__}.{name}")) is not None:
            value = make()
        elif isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == "oneflow":
            value = Face(f"{self.__name__}.{name}", value)
        elif value is None and not hasattr(ours, name):
            if name == "__all__":
                value = [n for n in dir(ours) if not n.startswith("_")]
            elif name.startswith("__"):
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            else:
                value = self._missing(name)
        if not name.startswith("__"):
            self.__dict__[name] = value
        return value

    def _missing(self, name: str) -> Any:
        """A submodule that OneFlow has not imported yet, or what torch has."""
        full = f"{self.__name__}.{name}"
        if (ours := _flows(full)) is not None:
            return Face(full, ours)
        theirs = getattr(_torchs(self.__name__), name, None)
        if theirs is None:
            theirs = _torchs(full)
        if theirs is None:
            raise MissingInOneFlow(f"neither OneFlow nor torch has {full}")
        if isinstance(theirs, types.ModuleType):
            return Face(full, None)
        if isinstance(theirs, types.FunctionType | types.BuiltinFunctionType):
            from . import border

            return border.crossing(theirs)
        return theirs

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings, as of ``torch.backends``, are for both: torch runs what OneFlow does not."""
        for module in (self.__dict__["_ours"], _torchs(self.__name__)):
            if module is not None and hasattr(module, name):
                setattr(module, name, value)
        self.__dict__.pop(name, None)
        if not hasattr(self, name):
            self.__dict__[name] = value

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.__dict__["_ours"]), *self.__dict__})

    def __repr__(self) -> str:
        return f"<module {self.__name__!r} of OneFlow>"


def _flows(name: str) -> ModuleType | None:
    """The module of OneFlow in the place of one of torch, or None."""
    try:
        return importlib.import_module("oneflow" + name[len("torch") :])
    except ImportError:
        return None


def _torchs(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@functools.cache
def face(name: str) -> Face:
    """What ``import torch`` or ``import torch.nn`` gives a script.

    Raises:
        ImportError: OneFlow cannot run here, or neither it nor torch has such a module.
    """
    from . import engine
    from .errors import EngineUnavailable

    if name == "torch":
        try:
            return Face("torch", engine.load())
        except EngineUnavailable as error:
            raise ImportError(f"mock torch is on, and {error}") from error
    parent, _, child = name.rpartition(".")
    found = getattr(face(parent), child)
    if not isinstance(found, types.ModuleType):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return cast(Face, found)
