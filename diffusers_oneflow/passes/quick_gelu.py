"""CLIP's activation as OneFlow's one op."""

from __future__ import annotations

from typing import Any

import torch

from ..capture import Program, op_name
from .base import Rewrite, args_of, custom_op

_FACTOR = 1.702  # of CLIP, and of OneFlow's quick_gelu kernel


@custom_op("oneflow.quick_gelu.default")
def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(_FACTOR * x)


class FuseQuickGelu(Rewrite):
    """``x * sigmoid(1.702 * x)`` (CLIP's quick_gelu) is one op in OneFlow: one pass over memory for three."""

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        if op_name(node) != "aten.mul.Tensor":
            return
        for x, gate in (args_of(node), args_of(node)[::-1]):
            if isinstance(gate, torch.fx.Node) and op_name(gate) == "aten.sigmoid.default":
                self._match(program, node, x, gate)
                return

    def _match(self, program: Program, node: torch.fx.Node, x: Any, gate: torch.fx.Node) -> None:
        scaled = args_of(gate)[0]
        if scaled is x:
            self.why_not(node, "the factor is 1: this is silu")
        elif op_name(scaled) != "aten.mul.Tensor" or args_of(scaled)[0] is not x:
            self.why_not(node, "the sigmoid is of something else than the factor")
        elif args_of(scaled)[1] != _FACTOR:
            self.why_not(node, f"the factor is {args_of(scaled)[1]}, not {_FACTOR}")
        elif len(gate.users) > 1 or len(scaled.users) > 1:
            self.why_not(node, "a part of it is used elsewhere")
        else:
            with program.graph.inserting_before(node):
                fused = program.graph.call_function(quick_gelu, (x,))
            fused.meta = dict(node.meta)
            self.replace(program, node, fused)
