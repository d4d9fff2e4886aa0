"""What objects hold: the items of containers, the attributes of plain objects, and what else can be written to in place."""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import functools
import logging
import sys
import types
import typing
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, cast

import torch

# What they hold is not followed: for classes, functions and modules of code see `structure`; loggers shape no result.
OPAQUE = (
    bool, int, float, complex, str, bytes, type(None), torch.Tensor, torch.nn.Module, torch.dtype, torch.device, type,
    types.FunctionType, types.ModuleType, logging.Logger, logging.LoggerAdapter, weakref.ref, enum.Enum,
    typing._Final, dataclasses.Field,
)  # fmt: skip
# Where modules keep tensors and other modules, and where this package keeps what stands in the place of their call.
TABLES = ("_parameters", "_buffers", "_modules")
OWN = ("_oneflow_dispatcher", "_compiled_call_impl")
CONTAINERS = (dict, list, tuple, collections.deque, functools.partial)
# Levels down to which contents are followed; what goes deeper, or in a circle of containers, is refused.
DEPTH = 32
_SETS = (set, frozenset)
_RAW = (bytearray, array.array)
_LARGEST = 64 << 10  # bytes that are compared in each call
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: of a class whose attributes can be set


def contents(value: Any) -> list[tuple[object, object]]:
    """``(key, item)`` of what an object holds: keys, places or attributes, the latter with a dot before their names."""
    if isinstance(value, OPAQUE):
        return []
    if isinstance(value, dict):
        # Not what a class of its own makes of them: transformers loads every model there is.
        found = list(dict.items(value))
    elif isinstance(value, functools.partial):
        found = [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    elif isinstance(value, CONTAINERS):
        found = list(enumerate(cast(Iterable[object], value)))
    elif isinstance(value, _SETS):
        found = list(enumerate(sorted(value, key=repr)))
    elif isinstance(value, types.MethodType):
        return [(".self", value.__self__), (".func", value.__func__)]
    elif isinstance(value, property):
        found = [(".fget", value.fget), (".fset", value.fset)]
    elif isinstance(value, (staticmethod, classmethod)):
        found = [(".func", value.__func__)]
    else:
        found = []
    inner = getattr(value, "__dict__", None)
    if type(inner) is dict:
        found += [(f".{name}", held) for name, held in inner.items()]
    return found + [(f".{name}", held) for name, held in _in_slots(value)]


def is_mutable_class(cls: type) -> bool:
    """Whether attributes of a class can be set."""
    return bool(cls.__flags__ & _HEAP)


def snapshot(value: Any) -> Callable[[], Hashable] | None:
    """A function that reads what can be written in `value` without a trace in a dictionary or a list; None if nothing can.

    What it returns names objects by their ids.

    Raises:
        ValueError: there is too much of it to be compared in each call; the message says what holds it.
    """
    if isinstance(value, set):
        return lambda: frozenset(map(id, value))
    # A list itself is watched, a subclass of it has slots only if it says so.
    if isinstance(value, collections.deque):
        return lambda: tuple(map(id, value))
    if isinstance(value, _RAW):
        if len(memoryview(value).cast("B")) > _LARGEST:
            raise ValueError(f"a large {type(value).__name__}")
        return lambda: (bytes(value),)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        if value.nbytes > _LARGEST or value.dtype.hasobject:
            raise ValueError("a large numpy array" if value.nbytes > _LARGEST else "a numpy array of objects")
        return lambda: (value.shape, value.strides, value.dtype, value.tobytes())
    if not isinstance(value, OPAQUE) and _slots(cast(Hashable, type(value))):
        return lambda: tuple([(name, id(held)) for name, held in _in_slots(value)])
    return None


def _in_slots(value: Any) -> list[tuple[str, object]]:
    found = []
    for slot in _slots(cast(Hashable, type(value))):
        try:
            found.append((slot.__name__, slot.__get__(value)))
        except AttributeError:  # nothing in it yet
            continue
    return found


@functools.lru_cache(maxsize=4096)
def _slots(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    bases = [base for base in cls.__mro__ if "__slots__" in vars(base)]
    return tuple(m for base in bases for m in vars(base).values() if type(m) is types.MemberDescriptorType)
