"""Convolutions and linear layers with the activation and the addition that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..capture import Program, op_name
from . import native_ops
from .base import Rewrite, args_of, emit, is_native, sole_user, value
from .channels_last import arguments
from .fuse_gate import activation
from .hoist import needs_of

_LINEAR, _CONV = str(native_ops.linear), str(native_ops.conv2d)


class FuseHeavy(Rewrite):
    """What follows a convolution or a linear layer is computed while its result is stored.

    ``act(conv(x) + residual)`` and ``act(linear(x)) + residual``, in the order in which they come.
    """

    def run(self, program: Program) -> Rewrite:
        self._needs: dict[torch.fx.Node, Any] = needs_of(program)
        self._varying = program.inputs[0] if program.inputs else None
        for node in list(program.graph.nodes):
            if op_name(node) == "aten.linear.default" and is_native(node):
                self._name(program, node)
        return super().run(program)

    def _name(self, program: Program, node: torch.fx.Node) -> None:
        """A linear layer as the op that has a place for what follows."""
        operands = arguments(node, ("input", "weight", "bias"), (None,) * 3)
        if any(w is not None and w.op != "placeholder" for w in operands[1:]):
            self.why_not(node, "its weight or bias is computed")
            return
        with program.graph.inserting_before(node):
            made = emit(program, native_ops.linear, (*operands, "none", None, "none"), value(node).shape, value(node).dtype, node)
        self._needs[made] = self._needs.get(node)
        node.replace_all_uses_with(made)
        program.outputs = [made if o is node else o for o in program.outputs]
        program.graph.erase_node(node)

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        op = op_name(node)
        if op == _LINEAR:
            self._linear(program, node)
        elif op == _CONV:
            self._conv(program, node)

    def _linear(self, program: Program, node: torch.fx.Node) -> None:
        x, weight, bias, act, residual, gate = args_of(node)
        user = self._only(program, node)
        if gate == "none" and act == "none" and residual is None and user is not None and activation(user):
            act = activation(user)
            node = self._absorb(program, node, user, native_ops.linear, (x, weight, bias, act, residual, gate))
            user = self._only(program, node)
        if gate == "none" and act != "quick_gelu" and (other := self._added(node, user)) is not None:
            self._absorb(program, node, user, native_ops.linear, (x, weight, bias, act, other, gate))

    def _conv(self, program: Program, node: torch.fx.Node) -> None:
        args: list[Any] = [*node.args, *["none", None][len(node.args) - 7 :]]
        user = self._only(program, node)
        if (other := self._added(node, user)) is not None:
            args[8] = other
            node = self._absorb(program, node, user, native_ops.conv2d, tuple(args))
            user = self._only(program, node)
        if user is not None and activation(user):
            args[7] = activation(user)
            self._absorb(program, node, user, native_ops.conv2d, tuple(args))

    @staticmethod
    def _only(program: Program, node: torch.fx.Node) -> torch.fx.Node | None:
        return None if node in program.outputs else sole_user(node)

    def _added(self, node: torch.fx.Node, user: torch.fx.Node | None) -> torch.fx.Node | None:
        """What `user` adds to `node`, if it is an addition of two tensors alike."""
        if user is None or op_name(user) != "aten.add.Tensor" or user.kwargs:
            return None
        other = args_of(user)[1] if args_of(user)[0] is node else args_of(user)[0]
        if not isinstance(other, torch.fx.Node) or other is node:
            return None
        if self._needs.get(node) != self._needs.get(user) and self._slow(node):
            self.why_not(user, "one operand does not change from step to step, and is computed apart")
            return None
        a, b = value(node), value(other)
        if a.shape != b.shape or a.dtype != b.dtype or value(user).dtype != a.dtype:
            self.why_not(user, "what is added has another shape or dtype")
            return None
        return other

    def _slow(self, node: torch.fx.Node) -> bool:
        """Whether `hoist` takes the node out of the graph, alone."""
        return bool(self._needs.get(node)) and self._varying not in self._needs[node]

    def _absorb(
        self, program: Program, node: torch.fx.Node, user: Any, target: Callable[..., Any], args: tuple[Any, ...]
    ) -> torch.fx.Node:
        # Where the user stands: only there is everything that it reads known.
        with program.graph.inserting_before(user):
            made = emit(program, target, args, value(user).shape, value(user).dtype, node)
        self._needs[made] = self._needs.get(user)
        self.replace(program, user, made)
        program.graph.erase_node(node)
        return made
