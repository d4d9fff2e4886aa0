"""Weights that a program reads in a half type only."""

from __future__ import annotations

import torch

from ..capture import Program, op_name
from .base import CASTS, HALVES, Rewrite, args_of, value


def targets(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The other dtypes that a program may read a weight of `dtype` in."""
    return HALVES if dtype == torch.float32 else ()


class CastWeights(Rewrite):
    """A cast of a float32 weight to a half type is a placeholder of that dtype: its copy is made anew only after a write.

    So autocast casts the weights of products. On the CPU alone: there writes to memory can be watched.
    """

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        if op_name(node) not in CASTS or (source := args_of(node)[0]).name not in program.weights:
            return
        held, dtype = value(source), value(node).dtype
        if held.device.type != "cpu" or dtype not in targets(held.dtype):
            return self.why_not(node, f"a weight of {held.dtype} on {held.device.type} is cast to {dtype} in every call")
        with program.graph.inserting_after(source):
            made = program.graph.placeholder(f"{source.name}_{dtype}".replace("torch.", ""))
        made.meta = {"val": held.to(dtype)}
        program.weights[made.name] = program.weights[source.name]
        self.replace(program, node, made)
