"""Compute equal things once."""

from __future__ import annotations

from typing import Any

import torch

from ..capture import Program, op_name
from .base import Rewrite

# Parts of the names of ops that draw new numbers in each call.
RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal")


class MergeEqualNodes(Rewrite):
    """Nodes with the same op and the same arguments become one.

    Every ResnetBlock applies the same activation to the same time embedding: 22 times in Stable
    Diffusion's UNet.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], torch.fx.Node] = {}

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        if any(word in op_name(node) for word in RANDOM):
            self.why_not(node, "each call draws new numbers")
            return
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        first = self._known.setdefault(key, node)
        if first is not node:
            self.replace(program, node, first)


def _frozen(value: Any) -> tuple[Any, ...]:
    """A hashable form in which 1, 1.0 and True, and 0.0 and -0.0, stay different."""
    if isinstance(value, (list, tuple)):
        return (type(value) is list, tuple(map(_frozen, value)))
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    return (type(value), value.hex() if isinstance(value, float) else value)
