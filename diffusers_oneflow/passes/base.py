"""What every pass is and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from ..capture import Program, op_name
from ..provenance import provenance, where


class Rewrite:
    """A pass over a program's graph; subclasses say in their docstring what they do and why.

    Attributes:
        applied: how often the pass changed something.
        near_misses: "place: reason" for places that look like the pattern but must stay.
    """

    def __init__(self) -> None:
        self.applied = 0
        self.near_misses: list[str] = []

    @property
    def name(self) -> str:
        """The pass's name in reports."""
        return type(self).__name__

    def run(self, program: Program) -> Rewrite:
        """Visit every op once, in order."""
        for node in list(program.graph.nodes):
            if node.op == "call_function":
                self.visit(program, node)
        return self

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        """Rewrite at `node`, if the pattern ends there."""
        raise NotImplementedError

    def why_not(self, node: torch.fx.Node, reason: str) -> None:
        """Note a near miss at `node`."""
        self.near_misses.append(f"{op_name(node)} in {where(node) or node.name}: {reason}")

    def replace(self, program: Program, node: torch.fx.Node, by: torch.fx.Node) -> None:
        """Let all users of `node`, outputs of the program included, use `by`."""
        node.replace_all_uses_with(by)
        program.outputs = [by if o is node else o for o in program.outputs]
        program.graph.erase_node(node)
        self.applied += 1


def emit(
    program: Program,
    target: Any,
    args: tuple[Any, ...],
    shape: Sequence[int],
    dtype: torch.dtype,
    like: torch.fx.Node,
) -> torch.fx.Node:
    """A new node where the graph's cursor is; it counts as a part of what `like` came from."""
    node = program.graph.call_function(target, args)
    node.meta = {**provenance(like), "val": torch.empty(tuple(shape), dtype=dtype, device="meta")}
    return node


# To another dtype, which is the second argument or a keyword.
CASTS = ("aten.to.dtype", "aten._to_copy.default")
# What the kernel pack computes in; everything else is left to OneFlow's own ops.
NATIVE_TYPES = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.float16, torch.bfloat16)


def is_native(node: torch.fx.Node) -> bool:
    """Whether the pack has kernels for what a node makes: one tensor, of a dtype that they take."""
    made = node.meta.get("val")
    return isinstance(made, torch.Tensor) and made.dtype in NATIVE_TYPES


def sole_user(node: torch.fx.Node) -> torch.fx.Node | None:
    """The one node that reads `node`, if it is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def args_of(node: torch.fx.Node) -> Any:
    """A node's arguments: what they are depends on the op, so that torch's type for them says nothing."""
    return node.args


def value(node: torch.fx.Node) -> torch.Tensor:
    """Shape and dtype of what a node makes (a fake tensor)."""
    return cast(torch.Tensor, node.meta["val"])


class custom_op:
    """Decorator: makes a function the target of nodes for an op that ATen does not have.

    The node's op name is `name`, under which the op has a lowering; calling it computes it in torch.
    """

    def __init__(self, name: str) -> None:
        self._name = self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __call__(self, *args: Any) -> Any:
        if not hasattr(self, "_function"):
            self._function = args[0]
            return self
        return self._function(*args)

    def __str__(self) -> str:
        return self._name
