"""A digest of everything that decides what a module's forward computes, the same in every process; weights' values aside.

Stored programs are found by it, so two states that could give two programs must differ here. It follows what a module
consists of - classes, attributes, layouts of weights - and the bytecode of all Python that can be reached from there:
methods, functions that they name, their defaults, closures and globals. An installed package (diffusers) counts by sizes and
times of its files, by the plain globals of the modules that were met, and by every function in it that somebody has replaced.
Code of the standard library, torch and numpy counts by name; their versions are part of a stored program's key.
"""

import collections
import enum
import functools
import hashlib
import inspect
import logging
import os
import re
import struct
import sys
import sysconfig
import types
import typing
import weakref
from pathlib import PurePath
from typing import NamedTuple

import torch

from .structure import IGNORED, fixed

# Trusted to be what their versions say.
_VERSIONED = frozenset((*sys.stdlib_module_names, "torch", "numpy", "oneflow", "diffusers_oneflow"))
_PLAIN = (bool, int, str, bytes, type(None), complex, type(Ellipsis), range, slice, PurePath)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
# What they are called is all that matters of them.
_NAMED = (
    types.BuiltinFunctionType, types.BuiltinMethodType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType, types.ClassMethodDescriptorType,
)  # fmt: skip
# What they hold is no part of any result.
_SKIPPED = (logging.Logger, logging.LoggerAdapter, weakref.ref, typing.TypeVar)
_TYPING = (type(typing.List[int]), type(typing.Union[int, str]), types.GenericAlias, types.UnionType, type(typing.Any),  # noqa: UP006, UP007
           inspect.Signature)  # fmt: skip
_CLASS_NOISE = frozenset(("__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__abstractmethods__",
                          "_abc_impl", "__slots__", "__parameters__", "__orig_bases__", "__firstlineno__"))  # fmt: skip
# Of configurations: where they came from, and a list in the random order of a set.
_HOUSEKEEPING = frozenset(("_name_or_path", "_commit_hash", "_use_default_values"))
_SITE = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
_LARGEST = 64 << 20  # bytes of tensors in attributes


class Unknowable(Exception):
    """Something that a module's forward may read has no content that could be compared; the message says what."""


class Fingerprint(NamedTuple):
    """What a module depends on.

    Attributes:
        digest: of everything, 64 hexadecimal digits.
        tensors: whose content it holds, parameters and buffers aside; the same ones, in the same order, where digests are equal.
    """

    digest: str
    tensors: list[torch.Tensor]


def fingerprint(module: torch.nn.Module, call: tuple = ()) -> Fingerprint:
    """The digest and what it holds the content of.

    Args:
        call: plain values and types that a call holds (`signature.Flat.spec`).

    Raises:
        Unknowable: the module holds an object that cannot be described.
    """
    found = _Walk()
    # This package's own code is part of a key by its content; it must not have changed since it was loaded.
    _files(__package__)
    found.value(call)
    found.module(module)
    return Fingerprint(found.digest(), found.tensors)


class _Walk:
    """Walks over objects and hashes what they are; a second visit of one hashes its number."""

    def __init__(self):
        self._hash = hashlib.sha256()
        self._numbers: dict[int, int] = {}
        self._alive: list = []
        self._packages: set[str] = set()
        self.tensors: list[torch.Tensor] = []

    def digest(self) -> str:
        """To be called once, when all was walked over."""
        self._installed()
        return self._hash.hexdigest()

    def _put(self, *parts):
        # Each with its length: no two sequences of parts give the same bytes.
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            self._hash.update(struct.pack("q", len(data)))
            self._hash.update(data)

    def _first(self, value) -> bool:
        """Whether `value` is met for the first time; else its number is hashed."""
        number = self._numbers.setdefault(id(value), len(self._numbers))
        if number < len(self._alive):
            self._put("again", number)
            return False
        self._alive.append(value)
        return True

    def module(self, module: torch.nn.Module):
        for name, sub in module.named_modules(remove_duplicate=False):
            self._put("submodule", name)
            if not self._first(sub):
                continue
            # Strengths of adapters are inputs, or stand in the key beside this digest.
            attributes, _ = fixed(name, sub)
            self.value(type(sub))
            for table in ("_parameters", "_buffers"):
                for key, tensor in attributes[table].items():
                    self._put(table, key)
                    self._weight(tensor)
            for key, value in attributes.items():
                if key not in IGNORED:
                    self._put("attribute", key)
                    self.value(value)
            for hooks in (sub._forward_hooks, sub._forward_pre_hooks):
                for hook in hooks.values():
                    self.value(hook)

    def _weight(self, tensor):
        if tensor is not None and self._first(tensor):
            layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
            self._put("weight", type(tensor).__qualname__, layout)

    def value(self, value):
        """Hash what `value` is."""
        kind = type(value)
        if kind is float:
            self._put("float", value.hex())
        elif kind in _PLAIN or isinstance(value, (*_TORCH, PurePath)):
            self._put(kind.__qualname__, repr(value))
        elif isinstance(value, enum.Enum):
            self._put("enum", kind.__module__, kind.__qualname__, value.name)
        elif isinstance(value, _SKIPPED):
            self._put("skipped", kind.__qualname__)
        elif isinstance(value, _TYPING):
            self._put("typing", repr(value))
        elif isinstance(value, _NAMED):
            self._put("named", getattr(value, "__module__", ""), value.__qualname__)
        elif kind in (tuple, frozenset) or self._first(value):
            # Whether two equal tuples are one object is the interpreter's whim.
            self._put(kind.__module__, kind.__qualname__)
            self._inside(value, kind)

    def _inside(self, value, kind):
        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, torch.nn.Module):
            self.module(value)
        elif isinstance(value, (list, tuple, collections.deque)):
            self._all(value)
        elif isinstance(value, (set, frozenset)):
            self._all(sorted(value, key=repr))
        elif isinstance(value, (dict, types.MappingProxyType)):
            for key, item in list(value.items()):
                if key not in _HOUSEKEEPING:
                    self.value(key)
                    self.value(item)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._all((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._all((value.func, value.args, value.keywords))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.ModuleType):
            self._put(value.__name__)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, (property, functools.cached_property)):
            self._all([getattr(value, part, None) for part in ("fget", "fset", "func")])
        elif isinstance(value, (staticmethod, classmethod)) or hasattr(value, "cache_parameters"):
            self.value(value.__wrapped__ if hasattr(value, "cache_parameters") else value.__func__)
        elif isinstance(value, re.Pattern):
            self._put(value.pattern, value.flags)
        elif kind.__module__ == "numpy" and hasattr(value, "tobytes") and not getattr(value.dtype, "hasobject", True):
            self._put(value.shape, value.dtype, hashlib.sha256(value.tobytes()).digest())
        elif isinstance(getattr(value, "__dict__", None), dict):
            self.value(kind)
            self.value(vars(value))
        elif getattr(kind, "__slots__", None) is not None and _origin(kind.__module__) != "versioned":
            self.value(kind)
            for name in kind.__slots__ if not isinstance(kind.__slots__, str) else (kind.__slots__,):
                self.value(getattr(value, name, None))
        else:
            raise Unknowable(f"a {kind.__module__}.{kind.__qualname__}")

    def _all(self, values):
        self._put(len(values))
        for value in values:
            self.value(value)

    def _tensor(self, tensor: torch.Tensor):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu" or tensor.nbytes > _LARGEST:
            raise Unknowable(f"a large tensor, or one of type {type(tensor).__name__} on {tensor.device}, in an attribute")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise Unknowable("a tensor of a special layout in an attribute")
        self.tensors.append(tensor)
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        self._put(tuple(tensor.shape), tensor.stride(), tensor.dtype, hashlib.sha256(content).digest())

    def _class(self, cls: type):
        self._put(cls.__module__, cls.__qualname__)
        origin = _origin(cls.__module__)
        if origin == "user":
            self._all(cls.__bases__)
            for name, member in list(vars(cls).items()):
                if name not in _CLASS_NOISE:
                    self._put(name)
                    self.value(member)
            return
        if origin == "installed":
            self._package(cls.__module__)
        # Somebody may have given it another forward.
        for name in ("forward", "__call__", "_call_impl"):
            if isinstance(method := getattr(cls, name, None), types.FunctionType):
                self.value(method)

    def _function(self, function: types.FunctionType):
        space = function.__globals__
        self._put(space.get("__name__"), function.__qualname__)
        origin = _origin(space.get("__name__"))
        if origin == "user":
            self._code(function.__code__)
            self.value(function.__defaults__)
            self.value(function.__kwdefaults__)
            self._globals(_names(function.__code__), space)
        elif origin == "installed":
            self._package(space.get("__name__"))
        # What a decorator wraps is in its closure.
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:
                self._put("empty cell")

    def _package(self, name: str):
        """Of a module of an installed package the values that its code reads; the package's files go in at the end."""
        self._packages.add(name.partition(".")[0])
        module = sys.modules.get(name)
        if module is not None and self._first(module):
            for key, value in list(vars(module).items()):
                if not key.startswith("__") and _plain(value):
                    self._put(key)
                    self.value(value)

    def _installed(self):
        """The files of the installed packages that were met, and what somebody has put in the place of their functions."""
        for root in sorted(self._packages):
            self._put("package", root, _files(root))
            for name in sorted(n for n in sys.modules if n == root or n.startswith(f"{root}.")):
                for place, function in _patches(sys.modules[name]):
                    self._put(name, place)
                    self.value(function)

    def _globals(self, names: list[str], space: dict):
        for name in names:
            if name in space:
                self._put("global", name)
                self._global(space[name], names)
            elif (module := _imported(name, space)) is not None:
                self._put("import", name)
                self._global(module, names)

    def _global(self, value, names: list[str]):
        self.value(value)
        if not isinstance(value, types.ModuleType):
            return
        origin = _origin(value.__name__)
        if origin == "installed":
            self._package(value.__name__)
        elif origin == "user":
            for name in names:
                # Of a module only what the code may take from it.
                if name in vars(value) and not isinstance(vars(value)[name], types.ModuleType):
                    self.value(vars(value)[name])

    def _code(self, code: types.CodeType):
        self._put(code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags,
                  code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount)  # fmt: skip
        self._all(code.co_consts)


@functools.lru_cache(maxsize=4096)
def _origin(module: str | None) -> str:
    """Whether a module is "versioned", "installed" in site-packages, or the "user"'s."""
    root = (module or "").partition(".")[0]
    if root in _VERSIONED or root == "builtins":
        return "versioned"
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return "installed" if file.startswith(_SITE) else "user"


def _plain(value, depth: int = 3) -> bool:
    """Whether a value consists of numbers and text."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return depth > 0 and all(_plain(v, depth - 1) for v in value)
    if isinstance(value, dict):
        return depth > 0 and all(_plain(k, 0) and _plain(v, depth - 1) for k, v in value.items())
    return isinstance(value, (*_PLAIN, *_TORCH, float))


def _patches(module):
    """``(place, function)`` of functions in an installed module, or in a class of it, that come from elsewhere."""
    name = getattr(module, "__name__", None)
    for key, value in list(getattr(module, "__dict__", {}).items()):
        if type(value) is types.FunctionType:
            if _origin(value.__globals__.get("__name__")) == "user":
                yield key, value
        elif isinstance(value, type) and value.__module__ == name:
            for member, function in list(vars(value).items()):
                if type(function) is types.FunctionType and _origin(function.__globals__.get("__name__")) == "user":
                    yield f"{key}.{member}", function


def _files(root: str) -> str:
    """Sizes and times of a package's files.

    Raises:
        Unknowable: a file is younger than this process, which may have read what it held before.
    """
    folder = os.path.dirname(sys.modules[root].__file__)
    found, folders = [], [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        folders.append(entry.path)
                elif entry.name.endswith(".py"):
                    status = entry.stat()
                    if status.st_mtime > _started():
                        raise Unknowable(f"the package {root}, whose {entry.name} was written to after this process had started")
                    found.append((entry.path.removeprefix(folder), status.st_size, status.st_mtime_ns))
    return repr(sorted(found))


@functools.cache
def _started() -> float:
    """When this process was started, in seconds since 1970."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", encoding="ascii") as file:
        boot = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    return boot + ticks / os.sysconf("SC_CLK_TCK")


@functools.lru_cache(maxsize=8192)
def _names(code: types.CodeType) -> list[str]:
    """All names that code, and code within it, may look up."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_names(constant)))
    return list(names)


def _imported(name: str, space: dict) -> types.ModuleType | None:
    """The module that ``import name`` or ``from .name import ...`` inside a function may mean, if it is loaded."""
    package = space.get("__package__") or ""
    while package:
        module = sys.modules.get(f"{package}.{name}")
        if module is not None:
            return module
        package = package.rpartition(".")[0]
    return sys.modules.get(name)
