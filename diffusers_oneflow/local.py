"""Ops that cannot be lowered, written as what they are made of, where they stand.

torch.export's own way, ``run_decompositions``, traces everything a second time: for SDXL's UNet 14 of 20 s, because of one
``torch.concat``. Here each such op is traced alone, on the fake tensors that the graph has of its inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from .provenance import provenance

_Table = Mapping[Any, Callable[..., Any]]


def decompose(
    graph: torch.fx.Graph, nodes: list[torch.fx.Node], table: _Table, is_known: Callable[[torch.fx.Node], bool]
) -> bool:
    """Replace `nodes` by what torch, and `table`, make of their ops; what comes of one counts as a part of where it came from.

    Args:
        graph: as torch.export traced it; what nodes give is in their ``meta["val"]``.
        table: op -> function that computes it by other ops.
        is_known: whether a node may come of it.

    Returns:
        Whether it could be done; if not, the graph is as it was.
    """
    made: list[tuple[torch.fx.Node, list[torch.fx.Node], torch.fx.Graph]] = []
    for node in nodes:
        traced = _traced(node, table)
        if traced is None or not all(_is_plain(n) and (n.op != "call_function" or is_known(n)) for n in traced.nodes):
            return False
        made.append((node, list(node.all_input_nodes), traced))
    done: dict[torch.fx.Node, torch.fx.Node] = {}
    for node, inputs, traced in made:
        _put(graph, node, [done.get(n, n) for n in inputs], traced, done)
    return True


def _traced(node: torch.fx.Node, table: _Table) -> torch.fx.Graph | None:
    """The op of `node` as a graph of the tensors that it reads, on the same fake tensors; None where torch cannot trace it."""
    inputs = list(node.all_input_nodes)
    values = [n.meta.get("val") for n in inputs]
    expected = node.meta.get("val")
    mode = _mode(expected)
    if mode is None or not all(isinstance(v, torch.Tensor) for v in values):
        return None
    if not isinstance(expected, torch.Tensor) and any(user.target is not operator.getitem for user in node.users):
        return None

    def call(*tensors: torch.Tensor) -> Any:
        given = dict(zip(inputs, tensors))
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]  # it calls an op

    try:
        # As torch.export does it: else what torch.compile has made raises in all other threads meanwhile.
        with mode, _compiling_state_context():
            traced = make_fx(call, decomposition_table=dict(table), tracing_mode="real")(*values).graph
    except Exception:  # what torch cannot trace alone it may still be able to as a part of all
        return None
    (output,) = traced.find_nodes(op="output")
    made = torch.fx.node.map_arg(output.args[0], lambda n: n.meta.get("val"))
    forms = _forms(expected)
    return traced if forms is not None and _forms(made) == forms else None


def _mode(value: Any) -> FakeTensorMode | None:
    return next((leaf.fake_mode for leaf in tree_leaves(value) if isinstance(leaf, FakeTensor)), None)


def _forms(value: Any) -> list[tuple[torch.Size, torch.dtype]] | None:
    """Shape and dtype of a tensor, or of each in a list of them; None of anything else."""
    tensors = [value] if isinstance(value, torch.Tensor) else value
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(t, torch.Tensor) for t in tensors):
        return None
    return [(t.shape, t.dtype) for t in tensors]


def _is_plain(node: torch.fx.Node) -> bool:
    """An input, an output or an op that changes nothing; no constant, which the graph would have to keep."""
    return node.op in ("placeholder", "output") or (node.op == "call_function" and not mutates(node))


def mutates(node: torch.fx.Node) -> bool:
    """Whether a node calls an op that writes to a tensor that it is given."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _put(
    graph: torch.fx.Graph,
    node: torch.fx.Node,
    inputs: list[torch.fx.Node],
    traced: torch.fx.Graph,
    done: dict[torch.fx.Node, torch.fx.Node],
) -> None:
    """Put `traced`, of `inputs`, in the place of `node`; what stands for it, or for the parts of it, goes into `done`."""
    before = node.prev
    with graph.inserting_before(node):
        result: Any = graph.graph_copy(traced, dict(zip(traced.find_nodes(op="placeholder"), inputs)))
    added = before.next
    while added is not node:
        added.meta.update(provenance(node))
        added = added.next
    whole = isinstance(result, torch.fx.Node)
    for old, new in [(node, result)] if whole else [(user, result[user.args[1]]) for user in node.users]:
        done[old] = new
        old.replace_all_uses_with(new)
        graph.erase_node(old)
    if not whole:
        graph.erase_node(node)
