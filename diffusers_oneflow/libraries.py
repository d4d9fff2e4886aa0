"""What of installed packages a module's forward depends on: their files, their flags, and what somebody has replaced in them.

Packages change in three ways. Their files do when another version is installed, or when somebody edits them: sizes and times
tell. Flags - plain values of modules and classes - are set by whoever likes: those of the modules that were met, and of the
modules of the same package from which these take something, are compared. Functions are replaced, in modules, classes and
registries: each is compared by where it comes from, and by its code where it comes from no installed package.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy
import torch

from .started import STARTED

# Trusted to be what their versions say, but for what somebody has put into them.
_VERSIONED = frozenset((*sys.stdlib_module_names, "torch", "numpy", "oneflow", "diffusers_oneflow"))
PLAIN = (bool, int, str, bytes, type(None), complex, type(Ellipsis), range, slice, PurePath)
TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_SITE = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
# Numbers that a process draws for itself.
_DRAWN = frozenset(("SESSION_ID",))
_FUNCTIONS = (types.FunctionType, functools.partial)
_CONTENT = (torch.Tensor, numpy.ndarray, re.Pattern)
# Where Python code looks for what torch can do.
_SPACES = (
    torch, torch.Tensor, torch.nn, torch.nn.Module, torch.nn.functional, torch.nn.attention, torch.fft, torch.linalg,
    torch.special, torch.amp, torch.compiler,
)  # fmt: skip


class Unknowable(Exception):
    """Something that a module's forward may read has no content that could be compared; the message says what."""


@functools.lru_cache(maxsize=4096)
def origin(module: str | None) -> str:
    """Whether a module is "versioned", "installed" in site-packages, or the "user"'s."""
    root = (module or "").partition(".")[0]
    if root in _VERSIONED or root == "builtins":
        return "versioned"
    file = getattr(sys.modules.get(root), "__file__", None) or next(iter(getattr(sys.modules.get(root), "__path__", ())), "")
    folder = os.path.dirname(file)
    if os.path.basename(file).startswith("__init__."):
        folder = os.path.dirname(folder)
    return "installed" if file.startswith(_SITE) or _holds_packages(folder) else "user"


@functools.cache
def _holds_packages(folder: str) -> bool:
    """Whether an installer has put packages there: `pip install --user` and ``--target`` have folders of their own."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder or "."))
    except OSError:
        return False


def source(value: Any) -> str | None:
    """The name of the module that the code of a function, or a class, comes from."""
    if isinstance(value, functools.partial):
        return source(value.func)
    if isinstance(value, types.MethodType):
        return source(value.__func__)
    if isinstance(value, functools._lru_cache_wrapper):
        return source(value.__wrapped__)
    if isinstance(value, types.FunctionType):  # functools.wraps gives a function another __module__
        return value.__globals__.get("__name__") or ""
    return value.__module__ if isinstance(value, type) else None


class Libraries:
    """The installed packages that a walk comes by.

    Args:
        value: hashes an object.
        put: hashes texts.
    """

    def __init__(self, value: Callable[[Any], None], put: Callable[..., None]) -> None:
        self._value, self._put = value, put
        self._met: set[str] = set()
        self._roots: set[str] = set()

    def meet(self, name: str | None, cls: type | None = None) -> None:
        """Take in a module of an installed package, those of the package that it takes something from, and a class that says
        that it comes from there."""
        if cls is not None and vars(sys.modules.get(name or "", types)).get(cls.__name__) is not cls:
            self.members(cls)
        waiting = [name]
        while waiting:
            name = waiting.pop()
            module = sys.modules.get(name) if name is not None else None
            # What a lazy module has depends on who asked for it before.
            if name is None or name in self._met or type(module) is not types.ModuleType:
                continue
            self._met.add(name)
            self._roots.add(name.partition(".")[0])
            self._put("met", name)
            for key, value in list(vars(module).items()):
                if not key.startswith("__") and key not in _DRAWN:
                    self._member(key, value)
                    waiting += self._next(name, value)
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    self.members(value)

    def _next(self, name: str, value: Any) -> Iterator[str]:
        root = name.partition(".")[0]
        place = value.__name__ if isinstance(value, types.ModuleType) else source(value)
        if place and origin(place) == "installed":
            self._roots.add(place.partition(".")[0])
            if place.partition(".")[0] == root:
                yield place

    def members(self, cls: type) -> None:
        """Take in what somebody may have put into a class of an installed package."""
        self._put("class", cls.__module__, cls.__qualname__)
        for key, value in list(vars(cls).items()):
            if not key.startswith("__") or key in ("__call__", "__torch_function__", "__getattr__", "__getattribute__"):
                self._member(key, value)

    def _member(self, key: str, value: Any, depth: int = 2) -> None:
        """A flag, a function, or a registry of functions."""
        value = getattr(value, "__func__", value) if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(value, property):
            value = value.fget
        place = source(value)
        if place is not None:
            self._put(key, place, getattr(value, "__qualname__", ""))
            if origin(place) == "user":
                self._value(value)
        elif plain(value) or isinstance(value, (Enum, *_CONTENT)) or _of_user(type(value).__module__):
            self._put(key)
            self._value(value)
        elif depth and isinstance(value, (list, tuple, set, frozenset)):
            for item in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
                self._member(key, item, depth - 1)
        elif depth and isinstance(value, dict):
            self._registry(key, value, depth)
        elif isinstance(value, types.ModuleType):
            return  # `meet` follows them; what lazy ones know of themselves comes in the order of a set
        elif depth and origin(type(value).__module__) == "installed" and isinstance(getattr(value, "__dict__", None), dict):
            self._put(key, type(value).__qualname__)
            self._registry(key, {**_inherited(type(value)), **vars(value)}, depth)

    def _registry(self, key: str, table: dict[Any, Any], depth: int) -> None:
        for name, value in list(dict.items(table)):
            if isinstance(value, (*_FUNCTIONS, *_CONTENT, type, dict)):
                self._member(f"{key}.{name}", value, depth - 1)

    def finish(self) -> None:
        """Take in the files of all packages, and what of others stands in torch's place."""
        from .cache import PACKAGES

        met = {name.partition(".")[0] for name in self._met}
        for root in sorted(self._roots):
            # Of a package that is but called from afar, its version tells enough where that is known.
            if root in met or root not in PACKAGES:
                self._put("package", root, files(root))
        spaces: tuple[Any, ...] = (*_SPACES, *_layers())
        for space in spaces:
            for key, value in list(vars(space).items()):
                value = getattr(value, "__func__", value) if isinstance(value, (staticmethod, classmethod)) else value
                place = source(value) if not isinstance(value, type) else None
                if place is not None and origin(place) != "versioned":
                    self._put(space.__name__, key, place)
                    self._value(value)


@functools.cache
def _layers() -> tuple[type, ...]:
    return tuple(v for v in vars(torch.nn).values() if isinstance(v, type) and v is not torch.nn.Module)


def _of_user(module: str) -> bool:
    # Compiled parts of packages name modules that there are not.
    return module in sys.modules and origin(module) == "user"


def _inherited(cls: type) -> dict[Any, Any]:
    """Registries that a class of an installed package shares among its objects."""
    return {key: value for base in reversed(cls.__mro__) for key, value in vars(base).items() if isinstance(value, dict)}


def plain(value: Any, depth: int = 3) -> bool:
    """Whether a value consists of numbers and text."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return depth > 0 and all(plain(v, depth - 1) for v in value)
    if isinstance(value, dict):
        return depth > 0 and all(plain(k, 0) and plain(v, depth - 1) for k, v in dict.items(value))
    return isinstance(value, (*PLAIN, *TORCH, float))


def files(root: str) -> str:
    """Names, sizes and times of the code of a loaded package, or of a module without package.

    Raises:
        Unknowable: a file is younger than this process, which may have read what it held before.
    """
    module: Any = sys.modules[root]
    folders, found = list(getattr(module, "__path__", ())), []
    if not folders and getattr(module, "__file__", None):
        found.append(_state(root, module.__file__, os.stat(module.__file__)))
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        folders.append(entry.path)
                elif entry.name.endswith((".py", ".so")):
                    found.append(_state(root, entry.path, entry.stat()))
    return repr(sorted(found))


def _state(root: str, path: str, status: os.stat_result) -> tuple[str, int, int]:
    if status.st_mtime > STARTED:
        name = os.path.basename(path)
        raise Unknowable(f"the package {root}, whose {name} was written to after this process had started")
    return path, status.st_size, status.st_mtime_ns
