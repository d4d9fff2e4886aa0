"""The values in a stored program: what a node is given, what it makes, and what a module returns, in JSON and back."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections import OrderedDict
from typing import Any

import torch

# torch's own constants, by the name of their kind and theirs within torch.
_TORCH = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
# Asking torch for a name may import a part of it.
_TORCH_NAMED = {kind: {n: v for n, v in vars(torch).items() if isinstance(v, cls)} for kind, cls in _TORCH.items()}
_SEQUENCES = {"list": list, "tuple": tuple, "Size": torch.Size}


class Unwritable(Exception):
    """A program holds something that has no form here; the message says what."""


class Unreadable(Exception):
    """Bytes are no program; the message says why."""


def text(value: object) -> str:
    """A name that was read. Raises `Unreadable` where it is none."""
    if not isinstance(value, str):
        raise Unreadable(f"{value!r} is no name")
    return value


def write(value: Any, index: dict[Any, Any]) -> Any:
    """An argument of a node in JSON: plain values as they are, all others as ``{kind: value}``."""
    if isinstance(value, torch.fx.Node):
        return {"node": index[value]}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        kind = "Size" if isinstance(value, torch.Size) else "tuple" if isinstance(value, tuple) else "list"
        items = [write(v, index) for v in value]
        return items if kind == "list" else {kind: items}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, cls in _TORCH.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    raise Unwritable(f"a value of type {type(value).__name__}")


def read_value(value: Any, nodes: list[Any]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, list):
        return [read_value(v, nodes) for v in value]
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind == "float":
        return float.fromhex(inner)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([read_value(v, nodes) for v in inner])
    if kind == "device":
        return torch.device(text(inner))
    return constant(kind, inner)


def constant(kind: str, name: str) -> Any:
    if name not in _TORCH_NAMED[kind]:
        raise Unreadable(f"torch.{name} is no {kind}")
    return _TORCH_NAMED[kind][name]


def write_made(value: Any) -> Any:
    """Shape and dtype of what a node makes; of several tensors one by one."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return [[int(size) for size in value.shape], str(value.dtype).removeprefix("torch.")]
    if isinstance(value, (list, tuple)):
        return {"of": [write_made(v) for v in value]}
    raise Unwritable(f"a node that makes a {type(value).__name__}")


def read_made(written: Any) -> Any:
    if written is None:
        return None
    if isinstance(written, dict):
        return tuple(map(read_made, written["of"]))
    shape, dtype = written
    return torch.empty(shape, dtype=constant("dtype", dtype), device="meta")


def write_spec(spec: tuple[Any, ...]) -> list[Any]:
    """A `signature.Flat`'s description of a result."""
    tag = spec[0]
    if tag == "tensor":
        return [tag, spec[1]]
    if tag == "float":
        return [tag, spec[1].hex()]
    if tag == "plain":
        if isinstance(spec[2], bytes):
            raise Unwritable("bytes in a result")
        return [tag, write(spec[2], {})]
    if tag not in ("sequence", "namedtuple", "output", "dict", "dataclass"):
        raise Unwritable(f"a {tag} in a result")
    _, kind, children = spec
    named = tag not in ("sequence", "namedtuple")
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind_of(tag, name) is not kind:
        raise Unwritable(f"a result of type {kind.__qualname__}, which has no name")
    return [tag, name, [[c[0], write_spec(c[1])] if named else write_spec(c) for c in children]]


def read_spec(written: list[Any]) -> tuple[Any, ...]:
    tag = written[0]
    if tag == "tensor":
        return (tag, int(written[1]))
    if tag == "float":
        return (tag, bytes.fromhex(written[1]))
    if tag == "plain":
        value = read_value(written[1], [])
        return (tag, type(value), value)
    _, name, children = written
    kind = kind_of(tag, name)
    if kind is None:
        raise Unreadable(f"the result's type {name} is not loaded, or of no kind that a result can be")
    if tag in ("sequence", "namedtuple"):
        return (tag, kind, tuple(map(read_spec, children)))
    return (tag, kind, tuple((key, read_spec(child)) for key, child in children))


def kind_of(tag: str, name: str) -> type | None:
    """The class ``module:name`` if it is loaded and of the kind that `tag` stands for."""
    module, _, path = name.partition(":")
    kind = sys.modules.get(module)
    for part in path.split("."):
        kind = vars(kind).get(part) if isinstance(kind, (type, types.ModuleType)) else None  # runs no code, as getattr may
    if not isinstance(kind, type):
        return None
    fits = {
        "sequence": kind in (tuple, list, torch.Size),
        "namedtuple": issubclass(kind, tuple) and hasattr(kind, "_fields"),
        "output": issubclass(kind, OrderedDict) and dataclasses.is_dataclass(kind),
        "dict": kind in (dict, OrderedDict),
        "dataclass": dataclasses.is_dataclass(kind),
    }
    return kind if fits.get(tag) else None
