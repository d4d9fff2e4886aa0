"""A call's arguments, or its result, taken apart into tensors, numbers and a hashable description of the rest."""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

_COMMON = frozenset((bool, str, type(None)))
_PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)


class Unkeyable(TypeError):
    """A value whose content cannot be part of a graph's key (an arbitrary object)."""


@dataclass
class Flat:
    """What a nested value holds.

    Attributes:
        spec: nested tuples that describe the value without its tensors and numbers; hashable.
        tensors: the tensors, in order, each once.
        numbers: Python floats and ints that may become inputs of a graph, in order.
    """

    spec: tuple[Any, ...] = ()
    tensors: list[torch.Tensor] = field(default_factory=list)
    numbers: list[float | int] = field(default_factory=list)


def flatten(value: Any, open_numbers: bool = False) -> Flat:
    """Take `value` apart: tensors, dicts, lists, tuples, named tuples, dataclasses, ModelOutputs, plain values.

    Args:
        open_numbers: collect the floats and ints of a call ``(args, kwargs)`` that are arguments
            themselves, or stand in a list or tuple that is one. Those inside dicts stay part of the
            spec: modules store such values on themselves (a LoRA scale).

    Raises:
        Unkeyable: the value holds an object of another kind; the message names its type.
    """
    flat = Flat()
    if open_numbers:
        args, kwargs = value
        positional = tuple(_describe(v, flat, 2) for v in args)
        flat.spec = (positional, tuple((k, _describe(v, flat, 2)) for k, v in kwargs.items()))
    else:
        flat.spec = _describe(value, flat, 0)
    return flat


def _describe(value: Any, flat: Flat, open_depth: int) -> tuple[Any, ...]:
    kind = type(value)
    if kind in _COMMON:
        return ("plain", kind, value)
    if isinstance(value, torch.Tensor):
        # One tensor in two places is one input: what is captured from it holds for such calls alone.
        for place, known in enumerate(flat.tensors):
            if known is value:
                return ("tensor", place)
        flat.tensors.append(value)
        return ("tensor", len(flat.tensors) - 1)
    if open_depth and kind in (float, int):
        flat.numbers.append(value)
        return ("number", kind, len(flat.numbers) - 1)
    if kind is float:
        return ("float", struct.pack("d", value))
    if isinstance(value, _PLAIN):
        return ("plain", kind, value)
    if kind is torch.Size or kind in (tuple, list):
        depth = max(open_depth - 1, 0)
        return ("sequence", kind, tuple(_describe(v, flat, depth) for v in value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("namedtuple", kind, tuple(_describe(v, flat, 0) for v in value))
    if isinstance(value, OrderedDict) and dataclasses.is_dataclass(value):
        return ("output", kind, tuple((k, _describe(v, flat, 0)) for k, v in value.items()))
    if isinstance(value, dict) and kind in (dict, OrderedDict):
        if not all(isinstance(k, (str, int)) for k in value):
            raise Unkeyable("a dict with keys that are neither strings nor integers")
        return ("dict", kind, tuple((k, _describe(v, flat, 0)) for k, v in value.items()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        return ("dataclass", kind, tuple((n, _describe(getattr(value, n), flat, 0)) for n in names))
    raise Unkeyable(f"an argument of type {kind.__module__}.{kind.__qualname__}")


def places(spec: tuple[Any, ...]) -> Iterator[int]:
    """The number of the tensor at each place of a spec: a tensor that is in two places comes twice."""
    form, *rest = spec
    if form == "tensor":
        yield rest[0]
    elif form in ("sequence", "namedtuple"):
        for part in rest[1]:
            yield from places(part)
    elif form in ("output", "dict", "dataclass"):
        for _, part in rest[1]:
            yield from places(part)


def kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    """All of a tensor but its content: code may ask for any of it."""
    strides = None if tensor.layout != torch.strided or tensor.is_contiguous() else tensor.stride()
    views = tensor.is_conj(), tensor.is_neg()
    return type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.layout, strides, views


def rebuild(spec: tuple[Any, ...], tensors: Sequence[torch.Tensor], numbers: Sequence[Any] = ()) -> Any:
    """The value that `flatten` took apart, with other tensors and numbers in the places of its own."""
    tag = spec[0]
    if tag == "tensor":
        return tensors[spec[1]]
    if tag == "number":
        return numbers[spec[2]]
    if tag == "float":
        return struct.unpack("d", spec[1])[0]
    if tag == "plain":
        return spec[2]
    _, kind, children = spec
    if tag in ("sequence", "namedtuple"):
        items = [rebuild(c, tensors, numbers) for c in children]
        return kind(*items) if tag == "namedtuple" else kind(items)
    named = {k: rebuild(c, tensors, numbers) for k, c in children}
    if tag == "dict":
        return kind(named)
    if tag == "output":
        return kind(**named)
    # A dataclass: field by field, since __init__ may take other arguments or check them.
    made = object.__new__(kind)
    for name, item in named.items():
        object.__setattr__(made, name, item)
    return made


def rebuild_call(
    spec: tuple[Any, ...], tensors: Sequence[torch.Tensor], numbers: Sequence[Any] = ()
) -> tuple[tuple[Any, ...], dict[Any, Any]]:
    """``(args, kwargs)`` of a call that was flattened with open numbers."""
    positional, named = spec
    args = tuple(rebuild(c, tensors, numbers) for c in positional)
    return args, {k: rebuild(c, tensors, numbers) for k, c in named}
