"""Programs as bytes: JSON for the graph, safetensors for its constants. Reading runs nothing and imports nothing.

What a graph may hold is spelled out here, value by value; what is not listed can be neither written nor read. Ops are
names that must have a lowering, and types of results must be loaded already and of the few kinds that `signature` knows.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from . import signature
from .capture import Program, op_name, where
from .passes import native_ops, quick_gelu
from .passes.base import custom_op

# The passes' own ops, by name.
_OWN = {str(op): op for module in (native_ops, quick_gelu) for op in vars(module).values() if isinstance(op, custom_op)}
_GETITEM = "getitem"
# torch's own constants, by the name of their kind and theirs within torch.
_TORCH = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
# Asking torch for a name may import a part of it.
_TORCH_NAMED = {kind: {n: v for n, v in vars(torch).items() if isinstance(v, cls)} for kind, cls in _TORCH.items()}
# What constants can be; safetensors has no complex numbers in all of its versions.
_KEPT_TYPES = frozenset((
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool,
))  # fmt: skip
_SEQUENCES = {"list": list, "tuple": tuple, "Size": torch.Size}


class Unwritable(Exception):
    """A program holds something that has no form here; the message says what."""


class Unreadable(Exception):
    """Bytes are no program; the message says why."""


@dataclass
class Pass:
    """What a pass did when a stored program was rewritten (of `passes.Rewrite`, for reports)."""

    name: str
    applied: int
    near_misses: list[str] = field(default_factory=list)


def dumps(program: Program, rewrites: Sequence[Any] = (), live: Sequence[torch.Tensor] = ()) -> bytes:
    """A program, rewritten or not, and what the passes did.

    Args:
        live: tensors that are there when it is read as well: constants that are one of them are written as its number, since a
            graph has to see what is written to it later.

    Raises:
        Unwritable: it holds a value of a kind that is not known here.
    """
    nodes = [n for n in program.graph.nodes if n.op != "output"]
    index = {node: i for i, node in enumerate(nodes)}
    position = {node.name: i for node, i in index.items()}
    numbers = {place: [i, real] for i, tensor in enumerate(live) for real, place in _places(tensor)}
    constants = {position[name]: t for name, t in program.constants.items() if name in position}
    known = {i: numbers[place] for i, t in constants.items() for _, place in list(_places(t))[:1] if place in numbers}
    document = {
        "nodes": [_write_node(node, index) for node in nodes],
        "inputs": [position[name] for name in program.inputs],
        # The placeholders of weights that no node reads any more are gone.
        "weights": {position[name]: qualified for name, qualified in program.weights.items() if name in position},
        "constants": list(constants),
        "live": known,
        "outputs": [index[node] for node in program.outputs],
        "result": _write_spec(program.result.spec),
        "on_cpu": program.on_cpu,
        "passes": [[r.name, r.applied, r.near_misses] for r in rewrites],
    }
    tensors = {str(i): _whole(t) for i, t in constants.items() if i not in known}
    return save(tensors, {"program": json.dumps(document, separators=(",", ":"))})


def _places(tensor: torch.Tensor) -> Iterator[tuple[bool, tuple[Any, ...]]]:
    """``(whether as real numbers, what tells tensors on the same memory from others)`` of a tensor."""
    if tensor.layout != torch.strided or not tensor.numel():
        return
    yield False, (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
    if tensor.is_complex() and not tensor.is_conj():
        yield from ((True, place) for _, place in _places(torch.view_as_real(tensor.detach())))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in _KEPT_TYPES:
        raise Unwritable(f"a constant of type {tensor.dtype}")
    return tensor.detach().contiguous().clone()


def loads(data: bytes, live: Sequence[torch.Tensor] = ()) -> tuple[Program, list[Pass]]:
    """The program that `dumps` wrote, and what the passes did.

    Args:
        live: as for `dumps`, the tensors of now.

    Raises:
        Unreadable: anything about the bytes is not as `dumps` writes it.
    """
    try:
        return _read(data, live)
    except Unreadable:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        # Bytes of another origin fail anywhere.
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def _read(data: bytes, live: Sequence[torch.Tensor]) -> tuple[Program, list[Pass]]:
    tensors = load(data)
    size = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["program"])
    graph = torch.fx.Graph()
    nodes: list[torch.fx.Node] = []
    for written in document["nodes"]:
        nodes.append(_read_node(graph, written, nodes))
    outputs = [nodes[i] for i in document["outputs"]]
    graph.output(tuple(outputs))
    known = {int(i): _living(live, *place) for i, place in document["live"].items()}
    constants = {_placeholder(nodes, i): known[i] if i in known else tensors[str(i)] for i in document["constants"]}
    weights = {_placeholder(nodes, int(i)): _text(name) for i, name in document["weights"].items()}
    inputs = [_placeholder(nodes, i) for i in document["inputs"]]
    on_cpu = list(map(bool, document["on_cpu"]))
    program = Program(graph, inputs, weights, constants, outputs, signature.Flat(_read_spec(document["result"])), on_cpu)
    return program, [Pass(*made) for made in document["passes"]]


def _living(live: Sequence[torch.Tensor], number: int, real: bool) -> torch.Tensor:
    tensor = live[number].detach()
    return torch.view_as_real(tensor) if real else tensor


def _placeholder(nodes: list[Any], position: int) -> str:
    if nodes[position].op != "placeholder":
        raise Unreadable(f"node {position} is no placeholder")
    return str(nodes[position].name)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Unreadable(f"{value!r} is no name")
    return value


def _write_node(node: torch.fx.Node, index: dict[Any, Any]) -> list[Any]:
    """``[name, op or None, args, kwargs, what it makes, where it comes from]``."""
    made = _write_made(node.meta.get("val"))
    if node.op == "placeholder":
        if not isinstance(made, list):
            raise Unwritable(f"the placeholder {node.name}, which is no tensor")
        return [node.name, None, None, None, made, where(node)]
    if node.op != "call_function":
        raise Unwritable(f"a node of kind {node.op}")
    name = _GETITEM if node.target is operator.getitem else op_name(node)
    if _op(name) is not node.target:
        raise Unwritable(f"the op {name}")
    kwargs = {k: _write(v, index) for k, v in node.kwargs.items()}
    return [node.name, name, [_write(v, index) for v in node.args], kwargs, made, where(node)]


def _read_node(graph: torch.fx.Graph, written: list[Any], nodes: list[Any]) -> torch.fx.Node:
    name, op, args, kwargs, made, place = written
    if op is None:
        node = graph.placeholder(_text(name))
        if not isinstance(made, list):
            raise Unreadable(f"the placeholder {name} is no tensor")
    else:
        target = _op(op)
        if target is None:
            raise Unreadable(f"the op {op} is not known")
        args, kwargs = tuple(_read_value(v, nodes) for v in args), {k: _read_value(v, nodes) for k, v in kwargs.items()}
        node = graph.create_node("call_function", target, args, kwargs, _text(name))
    node.meta["val"] = _read_made(made)
    path, _, source = _text(place).rpartition(", ")
    if not path and ":" not in source:
        path, source = source, ""
    node.meta["nn_module_stack"] = {"": (path, "")}
    node.meta["stack_trace"] = f'File "{source.replace(":", chr(34) + ", line ")}, in forward' if source else ""
    return node


def _op(name: str) -> Any:
    """The op called `name`, if it is one that graphs can hold."""
    from . import kernels, lowering

    if name == _GETITEM:
        return operator.getitem
    if name in _OWN:
        return _OWN[name]
    known = lowering.is_lowered(name) or kernels.find(name)[0] is not None or name == "aten._assert_tensor_metadata.default"
    if not known or name.count(".") != 2:
        return None
    space, packet, overload = name.split(".")
    op = getattr(getattr(getattr(torch.ops, space), packet), overload)  # asks a table of torch's, which imports nothing
    return op if isinstance(op, torch._ops.OpOverload) else None


def _write(value: Any, index: dict[Any, Any]) -> Any:
    """An argument of a node in JSON: plain values as they are, all others as ``{kind: value}``."""
    if isinstance(value, torch.fx.Node):
        return {"node": index[value]}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        kind = "Size" if isinstance(value, torch.Size) else "tuple" if isinstance(value, tuple) else "list"
        items = [_write(v, index) for v in value]
        return items if kind == "list" else {kind: items}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, cls in _TORCH.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    raise Unwritable(f"a value of type {type(value).__name__}")


def _read_value(value: Any, nodes: list[Any]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, list):
        return [_read_value(v, nodes) for v in value]
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind == "float":
        return float.fromhex(inner)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([_read_value(v, nodes) for v in inner])
    if kind == "device":
        return torch.device(_text(inner))
    return _constant(kind, inner)


def _constant(kind: str, name: str) -> Any:
    if name not in _TORCH_NAMED[kind]:
        raise Unreadable(f"torch.{name} is no {kind}")
    return _TORCH_NAMED[kind][name]


def _write_made(value: Any) -> Any:
    """Shape and dtype of what a node makes; of several tensors one by one."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return [[int(size) for size in value.shape], str(value.dtype).removeprefix("torch.")]
    if isinstance(value, (list, tuple)):
        return {"of": [_write_made(v) for v in value]}
    raise Unwritable(f"a node that makes a {type(value).__name__}")


def _read_made(written: Any) -> Any:
    if written is None:
        return None
    if isinstance(written, dict):
        return tuple(map(_read_made, written["of"]))
    shape, dtype = written
    return torch.empty(shape, dtype=_constant("dtype", dtype), device="meta")


def _write_spec(spec: tuple[Any, ...]) -> list[Any]:
    """A `signature.Flat`'s description of a result."""
    tag = spec[0]
    if tag == "tensor":
        return [tag, spec[1]]
    if tag == "float":
        return [tag, spec[1].hex()]
    if tag == "plain":
        if isinstance(spec[2], bytes):
            raise Unwritable("bytes in a result")
        return [tag, _write(spec[2], {})]
    if tag not in ("sequence", "namedtuple", "output", "dict", "dataclass"):
        raise Unwritable(f"a {tag} in a result")
    _, kind, children = spec
    named = tag not in ("sequence", "namedtuple")
    name = f"{kind.__module__}:{kind.__qualname__}"
    if _kind(tag, name) is not kind:
        raise Unwritable(f"a result of type {kind.__qualname__}, which has no name")
    return [tag, name, [[c[0], _write_spec(c[1])] if named else _write_spec(c) for c in children]]


def _read_spec(written: list[Any]) -> tuple[Any, ...]:
    tag = written[0]
    if tag == "tensor":
        return (tag, int(written[1]))
    if tag == "float":
        return (tag, bytes.fromhex(written[1]))
    if tag == "plain":
        value = _read_value(written[1], [])
        return (tag, type(value), value)
    _, name, children = written
    kind = _kind(tag, name)
    if kind is None:
        raise Unreadable(f"the result's type {name} is not loaded, or of no kind that a result can be")
    if tag in ("sequence", "namedtuple"):
        return (tag, kind, tuple(map(_read_spec, children)))
    return (tag, kind, tuple((key, _read_spec(child)) for key, child in children))


def _kind(tag: str, name: str) -> type | None:
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
