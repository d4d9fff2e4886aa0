"""A digest of everything that decides what a module's forward computes, the same in every process; weights' values aside.

Stored programs are found by it, so two states that could give two programs must differ here. It follows what a module
consists of - classes, attributes, layouts of weights - and the bytecode of all Python that can be reached from there:
methods, functions that they name, their defaults, closures and globals. Installed packages (diffusers) are left to
`libraries`. Code of the standard library, torch and numpy counts by name; their versions are part of a stored program's key.
"""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import inspect
import logging
import re
import types
import typing
import weakref
from collections.abc import Hashable
from pathlib import PurePath
from typing import Any, NamedTuple, cast

import torch
from torch.overrides import _get_current_function_mode_stack

from .fingerprint_code import Code
from .libraries import PLAIN, TORCH, Libraries, Unknowable, files, origin
from .structure import IGNORED, fixed

# What they are called is all that matters of them.
_NAMED = (
    types.BuiltinFunctionType, types.BuiltinMethodType, types.MethodDescriptorType, types.WrapperDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType, types.ClassMethodDescriptorType,
)  # fmt: skip
_PLAIN = (*TORCH, PurePath)
# What they hold is no part of any result.
_SKIPPED = (logging.Logger, logging.LoggerAdapter, typing.TypeVar)
_TYPING = (type(typing.List[int]), type(typing.Union[int, str]), types.GenericAlias, types.UnionType, type(typing.Any),  # noqa: UP006, UP007
           inspect.Signature)  # fmt: skip
_CLASS_NOISE = frozenset(("__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__abstractmethods__",
                          "_abc_impl", "__slots__", "__parameters__", "__orig_bases__", "__firstlineno__",
                          "__slotnames__"))  # fmt: skip
# Of configurations: where they came from, and a list in the random order of a set; of weights, whether they were loaded.
_HOUSEKEEPING = frozenset(("_name_or_path", "_commit_hash", "_use_default_values", "_is_hf_initialized"))
_LARGEST = 64 << 20  # bytes of tensors in attributes


class Fingerprint(NamedTuple):
    """What a module depends on.

    Attributes:
        digest: of everything, 64 hexadecimal digits.
        tensors: whose content it holds, parameters and buffers aside; the same ones, in the same order, where digests are equal.
    """

    digest: str
    tensors: list[torch.Tensor]


def fingerprint(module: torch.nn.Module, call: tuple[Any, ...] = ()) -> Fingerprint:
    """The digest and what it holds the content of.

    Args:
        call: plain values and types that a call holds (`signature.Flat.spec`).

    Raises:
        Unknowable: the module holds an object that cannot be described.
    """
    found = _Walk()
    try:
        # This package's own code is part of a key by its content; it must not have changed since it was loaded.
        files(__package__)
        found.modes()
        found.value(call)
        found.module(module)
        return Fingerprint(found.digest(), found.tensors)
    finally:
        found.forget()


class _Walk:
    """Walks over objects and hashes what they are; a second visit of one hashes its number."""

    def __init__(self) -> None:
        self._written: list[str] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._libraries = Libraries(self.value, self._put)
        self._code = Code(self.value, self._all, self._put, self._libraries)
        self.tensors: list[torch.Tensor] = []

    def digest(self) -> str:
        """To be called once, when all was walked over."""
        self._code.finish()
        self._libraries.finish()
        return hashlib.sha256("".join(self._written).encode("utf-8", "backslashreplace")).hexdigest()

    def forget(self) -> None:
        """Let go of all that was met: the walk holds itself, and would keep a module until the collector looks at everything."""
        vars(self).clear()

    def _put(self, *parts: Any) -> None:
        # As Python writes it: no two sequences of parts give the same text.
        self._written.append(repr(parts))

    def _first(self, value: Any) -> bool:
        """Whether `value` is met for the first time; else its number is hashed."""
        number = self._numbers.setdefault(id(value), len(self._numbers))
        if number < len(self._alive):
            self._put("again", number)
            return False
        self._alive.append(value)
        return True

    def modes(self) -> None:
        """Hash what holds for the whole process, or thread, and that code or torch.export itself may ask for."""
        for mode in _get_current_function_mode_stack():
            if not isinstance(mode, torch.utils._device.DeviceContext):
                raise Unknowable(f"calls under a {type(mode).__name__}")
            self.value(mode.device)
        if torch._C._len_torch_dispatch_stack():
            raise Unknowable("calls under a dispatch mode")
        hooks = torch.nn.modules.module
        if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            raise Unknowable("calls under hooks of all modules")
        self._all((
            torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.backends.mha.get_fastpath_enabled(), torch.get_float32_matmul_precision(),
        ))  # fmt: skip

    def module(self, module: torch.nn.Module) -> None:
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
            # Code may ask whether there is one.
            self._put("none", *(key for key, inner in attributes["_modules"].items() if inner is None))
            for key, value in attributes.items():
                if key not in IGNORED:
                    self._put("attribute", key)
                    self.value(value)
            for hooks in (sub._forward_hooks, sub._forward_pre_hooks):
                for hook in hooks.values():
                    self.value(hook)

    def _weight(self, tensor: torch.Tensor | None) -> None:
        if tensor is not None and self._first(tensor):
            layout = (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
            self._put("weight", type(tensor).__qualname__, layout)
            if attributes := getattr(tensor, "__dict__", None):
                self.value(attributes)

    def value(self, value: Any) -> None:
        """Hash what `value` is."""
        kind = type(value)
        if kind is float:
            self._put("float", value.hex())
        elif kind in PLAIN or isinstance(value, _PLAIN):
            self._put(kind.__qualname__, repr(value))
        elif isinstance(value, enum.Enum):
            self._put("enum", kind.__module__, kind.__qualname__, value.name)
            self.value(value.value)
            if origin(kind.__module__) == "user":
                self.value(kind)
        elif isinstance(value, weakref.ref):
            self._put("weakref")
            self.value(value())
        elif isinstance(value, _SKIPPED):
            self._put("skipped", kind.__qualname__)
        elif isinstance(value, _TYPING):
            self._put("typing", repr(value))
        elif isinstance(value, _NAMED):
            self._code.named(value)
        elif kind in (tuple, frozenset) or self._first(value):
            # Whether two equal tuples are one object is the interpreter's whim.
            self._put(kind.__module__, kind.__qualname__)
            self._inside(value, kind)

    def _inside(self, value: Any, kind: type) -> None:
        if kind in weakref.ProxyTypes:
            raise Unknowable("a weak proxy")
        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, torch.nn.Module):
            self.module(value)
        elif isinstance(value, (list, tuple, collections.deque, set, frozenset)):
            self._all(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)
            self._beside(value)
        elif isinstance(value, (dict, types.MappingProxyType)):
            # Not what a class of its own makes of them: transformers loads every model there is.
            pairs = dict.items(value) if isinstance(value, dict) else value.items()
            items = [pair for pair in list(pairs) if not isinstance(pair[0], str) or pair[0] not in _HOUSEKEEPING]
            self._put(len(items))
            for key, item in items:
                self.value(key)
                self.value(item)
            self._beside(value)
        elif isinstance(value, types.FunctionType):
            self._code.function(value)
        elif isinstance(value, types.MethodType):
            self._all((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._all((value.func, value.args, value.keywords))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.ModuleType):
            self._library(value)
        elif isinstance(value, types.CodeType):
            self._code.code(value)
        elif isinstance(value, (property, functools.cached_property)):
            self._all([getattr(value, part, None) for part in ("fget", "fset", "func")])
        elif isinstance(value, (staticmethod, classmethod)) or hasattr(value, "cache_parameters"):
            self.value(value.__wrapped__ if hasattr(value, "cache_parameters") else value.__func__)
        elif isinstance(value, re.Pattern):
            self._put(value.pattern, value.flags)
        elif kind.__module__ == "numpy" and hasattr(value, "tobytes") and not getattr(value.dtype, "hasobject", True):
            self._put(value.shape, value.dtype, hashlib.sha256(value.tobytes()).digest())
        elif isinstance(value, (str, bytes, int, float, complex)):
            # Of a class of its own.
            base: Any = next(b for b in (str, bytes, int, float, complex) if isinstance(value, b))
            self.value(base.__new__(base, value))
            self.value(kind)
            self._beside(value)
        elif isinstance(getattr(value, "__dict__", None), dict) or _slots(kind):
            self.value(kind)
            self._beside(value)
        else:
            raise Unknowable(f"a {kind.__module__}.{kind.__qualname__}")

    def _beside(self, value: Any) -> None:
        """The attributes of an object, beside what it holds as a container."""
        if inner := getattr(value, "__dict__", None):
            # What diffusers tells peft to replace is a list in the random order of a set, and was replaced long ago.
            config = type(value).__module__.startswith("peft.") and isinstance(inner.get("target_modules"), list)
            self.value({**inner, "target_modules": set(inner["target_modules"])} if config else inner)
        for name in _slots(cast(Hashable, type(value))):
            self._put(name)
            self.value(getattr(value, name, None))

    def _library(self, module: types.ModuleType) -> None:
        """A module in an attribute: any of it may be used."""
        self._put(module.__name__)
        if origin(module.__name__) == "installed":
            self._libraries.meet(module.__name__)
        elif origin(module.__name__) == "user":
            for key, value in list(vars(module).items()):
                if not key.startswith("__") or key == "__getattr__":
                    self._put(key)
                    self.value(value)

    def _all(self, values: Any) -> None:
        self._put(len(values))
        for value in values:
            self.value(value)

    def _tensor(self, tensor: torch.Tensor) -> None:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu" or tensor.nbytes > _LARGEST:
            raise Unknowable(f"a large tensor, or one of type {type(tensor).__name__} on {tensor.device}, in an attribute")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise Unknowable("a tensor of a special layout in an attribute")
        self.tensors.append(tensor)
        content: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        self._put(tuple(tensor.shape), tensor.stride(), tensor.dtype, hashlib.sha256(content).digest())

    def _class(self, cls: type) -> None:
        self._put(cls.__module__, cls.__qualname__)
        place = origin(cls.__module__)
        if place == "user":
            self._all(cls.__bases__)
            for name, member in list(vars(cls).items()):
                if name not in _CLASS_NOISE:
                    self._put(name)
                    self.value(member)
            return
        for base in cls.__mro__:
            if origin(base.__module__) == "installed":
                self._libraries.meet(base.__module__, base)
            elif origin(base.__module__) == "user":
                self.value(base)
        # Somebody may have given it another forward.
        for name in ("forward", "__call__", "_call_impl"):
            if isinstance(method := getattr(cls, name, None), types.FunctionType):
                self.value(method)


@functools.lru_cache(maxsize=4096)
def _slots(cls: type) -> list[str]:
    """Attributes that objects of a class have without a dictionary."""
    found = []
    for base in cls.__mro__:
        names = vars(base).get("__slots__", ())
        if origin(base.__module__) != "versioned":
            for name in (names,) if isinstance(names, str) else names:
                private = name.startswith("__") and not name.endswith("__")
                found.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]
