"""Programs as bytes: JSON for the graph, safetensors for its constants. Reading runs nothing and imports nothing.

What a graph may hold is spelled out here, value by value; what is not listed can be neither written nor read. Ops are
names that must have a lowering, and types of results must be loaded already and of the few kinds that `signature` knows.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from . import signature
from .capture import Program, op_name
from .passes import native_ops, quick_gelu
from .passes.base import custom_op
from .provenance import where
from .stored_values import Unreadable, Unwritable, read_made, read_spec, read_value, text, write, write_made, write_spec

# The passes' own ops, by name.
_OWN = {str(op): op for module in (native_ops, quick_gelu) for op in vars(module).values() if isinstance(op, custom_op)}
_GETITEM = "getitem"
# What constants can be; safetensors has no complex numbers in all of its versions.
_KEPT_TYPES = frozenset((
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool,
))  # fmt: skip


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
        "result": write_spec(program.result.spec),
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
    weights = {_placeholder(nodes, int(i)): text(name) for i, name in document["weights"].items()}
    inputs = [_placeholder(nodes, i) for i in document["inputs"]]
    on_cpu = list(map(bool, document["on_cpu"]))
    program = Program(graph, inputs, weights, constants, outputs, signature.Flat(read_spec(document["result"])), on_cpu)
    return program, [Pass(*made) for made in document["passes"]]


def _living(live: Sequence[torch.Tensor], number: int, real: bool) -> torch.Tensor:
    tensor = live[number].detach()
    return torch.view_as_real(tensor) if real else tensor


def _placeholder(nodes: list[Any], position: int) -> str:
    if nodes[position].op != "placeholder":
        raise Unreadable(f"node {position} is no placeholder")
    return str(nodes[position].name)


def _write_node(node: torch.fx.Node, index: dict[Any, Any]) -> list[Any]:
    """``[name, op or None, args, kwargs, what it makes, where it comes from]``."""
    made = write_made(node.meta.get("val"))
    if node.op == "placeholder":
        if not isinstance(made, list):
            raise Unwritable(f"the placeholder {node.name}, which is no tensor")
        return [node.name, None, None, None, made, where(node)]
    if node.op != "call_function":
        raise Unwritable(f"a node of kind {node.op}")
    name = _GETITEM if node.target is operator.getitem else op_name(node)
    if _op(name) is not node.target:
        raise Unwritable(f"the op {name}")
    kwargs = {k: write(v, index) for k, v in node.kwargs.items()}
    return [node.name, name, [write(v, index) for v in node.args], kwargs, made, where(node)]


def _read_node(graph: torch.fx.Graph, written: list[Any], nodes: list[Any]) -> torch.fx.Node:
    name, op, args, kwargs, made, place = written
    if op is None:
        node = graph.placeholder(text(name))
        if not isinstance(made, list):
            raise Unreadable(f"the placeholder {name} is no tensor")
    else:
        target = _op(op)
        if target is None:
            raise Unreadable(f"the op {op} is not known")
        args, kwargs = (
            tuple(read_value(v, nodes) for v in args),
            {k: read_value(v, nodes) for k, v in kwargs.items()},
        )
        node = graph.create_node("call_function", target, args, kwargs, text(name))
    node.meta["val"] = read_made(made)
    path, _, source = text(place).rpartition(", ")
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
