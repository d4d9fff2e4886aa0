"""The gated activations of feed-forward layers."""

from __future__ import annotations

from typing import Any

import torch

from ..capture import Program, op_name
from . import native_ops
from .base import Rewrite, args_of, emit, is_native, sole_user, value
from .channels_last import arguments

_SPLITS = {"aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default"}


class FuseGate(Rewrite):
    """``a, b = x.chunk(2, -1); a * gelu(b)`` (GEGLU, SwiGLU) is one pass over x; right after a linear layer, part of it."""

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        if op_name(node) != "aten.mul.Tensor" or not is_native(node):
            return
        for plain, gate in (args_of(node), args_of(node)[::-1]):
            act = activation(gate)
            if act and self._halves(plain, args_of(gate)[0]):
                self._fuse(program, node, plain, gate, act)
                return

    @staticmethod
    def _halves(a: Any, b: Any) -> bool:
        """True if a and b are the two halves of one split over the last dimension, and nothing else is."""
        if not all(isinstance(x, torch.fx.Node) and op_name(x) == "<built-in function getitem>" for x in (a, b)):
            return False
        split = args_of(a)[0]
        if split is not args_of(b)[0] or op_name(split) not in _SPLITS or {args_of(a)[1], args_of(b)[1]} != {0, 1}:
            return False
        x, _, dim = arguments(split, ("self", "split", "dim"), (None, None, 0))
        shapes = value(a).shape, value(b).shape
        return dim % value(x).ndim == value(x).ndim - 1 and shapes[0] == shapes[1] and 2 * shapes[0][-1] == value(x).shape[-1]

    def _fuse(self, program: Program, node: torch.fx.Node, plain: torch.fx.Node, gate: torch.fx.Node, act: str) -> None:
        half = args_of(gate)[0]
        if sole_user(gate) is None or sole_user(half) is None or sole_user(plain) is None:
            self.why_not(node, "a half is used elsewhere")
            return
        x = args_of(plain)[0].args[0]
        first = args_of(half)[1] == 0
        linear = op_name(x) == "aten.linear.default" and len(x.users) == 1 and not first and x not in program.outputs
        linear = linear and all(
            w is None or w.op == "placeholder" for w in arguments(x, ("input", "weight", "bias"), (None,) * 3)[1:]
        )
        with program.graph.inserting_before(node):
            if linear:
                args = (*arguments(x, ("input", "weight", "bias"), (None,) * 3), "none", None, act)
                made = emit(program, native_ops.linear, args, value(node).shape, value(node).dtype, x)
            else:
                made = emit(program, native_ops.gated, (x, act, first), value(node).shape, value(node).dtype, node)
        self.replace(program, node, made)


def activation(node: Any) -> str:
    """The pack's name of the activation that a node applies, or "" if it is none."""
    if not isinstance(node, torch.fx.Node):
        return ""
    op = op_name(node)
    if op == "aten.gelu.default":
        return "gelu_tanh" if arguments(node, ("self", "approximate"), (None, "none"))[1] == "tanh" else "gelu"
    names = {
        "aten.silu.default": "silu", "aten.relu.default": "relu", "aten.sigmoid.default": "sigmoid",
        "aten.tanh.default": "tanh", "oneflow.quick_gelu.default": "quick_gelu",
    }  # fmt: skip
    return names.get(op, "")
