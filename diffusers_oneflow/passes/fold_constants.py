"""Compute at build time what depends on no input."""

from __future__ import annotations

from typing import Any, cast

import torch

from ..capture import Program, op_name
from ..provenance import provenance
from .base import Rewrite, value

_FACTORIES = {
    "aten.arange.default", "aten.arange.start", "aten.arange.start_step", "aten.full.default", "aten.zeros.default",
    "aten.ones.default", "aten.scalar_tensor.default", "aten.linspace.default", "aten.eye.default",
}  # fmt: skip
_LARGEST = 1 << 22  # elements; beyond it storing costs more than computing


class FoldConstants(Rewrite):
    """Values made from factories alone (frequency tables, causal masks, positions) are computed once, by torch.

    Weights are never folded: they may be written to later, and a graph has to see that.
    """

    def run(self, program: Program) -> Rewrite:
        constant: dict[torch.fx.Node, torch.Tensor] = {}
        for node in list(program.graph.nodes):
            if node.op == "call_function" and self._foldable(node, constant):
                constant[node] = self._compute(node, constant)
        for node, tensor in constant.items():
            if isinstance(tensor, torch.Tensor) and any(user not in constant for user in node.users):
                self._store(program, node, tensor)
        return self

    def _foldable(self, node: torch.fx.Node, constant: dict[torch.fx.Node, Any]) -> bool:
        inputs = node.all_input_nodes
        if not all(i in constant for i in inputs) or (not inputs and op_name(node) not in _FACTORIES):
            return False
        made = value(node)
        if isinstance(made, torch.Tensor) and made.numel() > _LARGEST:
            self.why_not(node, f"{made.numel()} elements are more than is worth storing")
            return False
        return True

    @staticmethod
    def _compute(node: torch.fx.Node, constant: dict[torch.fx.Node, Any]) -> Any:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: constant[n])
        with torch.no_grad():
            made = cast(Any, node.target)(*args, **kwargs)
        # A copy that RemoveNoops took out may have been there for a view.
        return made.contiguous() if isinstance(made, torch.Tensor) else made

    def _store(self, program: Program, node: torch.fx.Node, tensor: torch.Tensor) -> None:
        name = f"folded_{node.name}"
        with program.graph.inserting_before(_first_op(program.graph)):
            made = program.graph.placeholder(name)
        made.meta = {**provenance(node), "val": value(node)}
        program.constants[made.name] = tensor.contiguous()
        self.replace(program, node, made)


def _first_op(graph: torch.fx.Graph) -> torch.fx.Node:
    return next(cast(torch.fx.Node, n) for n in graph.nodes if n.op != "placeholder")
