"""Elementwise ops that feed one another, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch

from ..capture import Program, op_name
from . import native_ops
from .base import CASTS, Rewrite, args_of, emit, is_native, sole_user, value
from .fuse_gate import activation

_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "div": "div", "maximum": "max", "minimum": "min"}
_UNARY = {"exp", "log", "sqrt", "rsqrt", "sin", "cos", "neg", "abs", "square", "erf"}
# Of the kernel (math.h).
_OPERANDS, _INSTRUCTIONS, _DIMENSIONS = 16, 64, 6


class FuseChains(Rewrite):
    """Sums, products and functions of single numbers become chains: each intermediate value stays in a register.

    In half types every value is computed in float32 and rounded once, at the end.
    """

    def run(self, program: Program) -> Rewrite:
        taken: set[torch.fx.Node] = set()
        for node in reversed(list(program.graph.nodes)):
            if node.op == "call_function" and node not in taken and _expressible(node):
                chain = _largest(program, node)
                if chain is not None:
                    taken |= chain.nodes
                    with program.graph.inserting_before(node):
                        args = (chain.operands, chain.instructions(), value(node).dtype)
                        made = emit(program, native_ops.chain, args, value(node).shape, value(node).dtype, node)
                    self.replace(program, node, made)
                    self.applied += len(chain.nodes) - 1
        return self


def _largest(program: Program, root: torch.fx.Node) -> _Chain | None:
    """The largest chain that ends at `root` and that the kernel takes."""
    for most in (_INSTRUCTIONS, 24, _OPERANDS - 1, 8, 4, 1):
        chain = _Chain(program, root, most)
        if 0 < len(chain.operands) <= _OPERANDS and len(chain.instructions()) <= _INSTRUCTIONS:
            return chain
    return None


class _Chain:
    """A tree of at most `most` elementwise ops of one shape that ends at a node."""

    def __init__(self, program: Program, root: torch.fx.Node, most: int) -> None:
        self._most = most
        self.operands: list[torch.fx.Node] = []
        self.nodes: set[torch.fx.Node] = set()
        self._program, self._shape = program, value(root).shape
        self._steps: list[tuple[Any, ...]] = []
        self._visit(root)

    def _visit(self, node: torch.fx.Node) -> tuple[Any, ...]:
        """Where the node's value is: ``("operand", i)`` or ``("step", i)``."""
        root = not self.nodes
        inner = root or (
            value(node).shape == self._shape and sole_user(node) is not None and node not in self._program.outputs
            and _expressible(node) and len(self.nodes) < self._most
        )  # fmt: skip
        if not inner:
            if node not in self.operands:
                self.operands.append(node)
            return "operand", self.operands.index(node)
        self.nodes.add(node)
        place = None
        for code, arguments, number in _steps_of(node):
            places = [place if a is None else self._visit(a) for a in arguments]
            self._steps.append((code, places, number))
            place = ("step", len(self._steps) - 1)
        return place if place is not None else self._visit_source(node)

    def _visit_source(self, node: torch.fx.Node) -> tuple[str, int]:
        """A cast computes nothing: registers are float32."""
        return self._visit(args_of(node)[0])

    def instructions(self) -> list[tuple[Any, ...]]:
        """``(code, a, b, value)`` with values numbered operands first."""

        def number(place: tuple[str, int]) -> int:
            return place[1] + (len(self.operands) if place[0] == "step" else 0)

        made = []
        for code, places, constant in self._steps:
            a, b = number(places[0]), number(places[1]) if len(places) > 1 else 0
            made.append((code, a, b, constant))
        # A chain of casts alone still needs one.
        return made or [("mul_scalar", 0, 0, 1.0)]


def _steps_of(node: torch.fx.Node) -> list[tuple[Any, ...]]:
    """``(code, arguments, number)`` of each instruction for a node; an argument None is the result of the one before."""
    op = op_name(node)
    if op in CASTS:
        return []
    if act := activation(node):
        return [("act", [args_of(node)[0]], act)]
    name = op.split(".")[1]
    if name in _UNARY:
        return [(name, [args_of(node)[0]], 0.0)]
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        low, high = _bounds(name, node)
        steps = [("max_scalar", low)] if low is not None else []
        steps += [("min_scalar", high)] if high is not None else []
        return [(code, [args_of(node)[0] if i == 0 else None], float(v)) for i, (code, v) in enumerate(steps)]
    if name == "pow":
        return [("pow_scalar", [args_of(node)[0]], float(args_of(node)[1]))]
    a, b = args_of(node)[:2]
    if name == "rsub":
        return [("rsub_scalar", [a], float(b))]
    if isinstance(b, torch.fx.Node) and isinstance(a, torch.fx.Node):
        return [(_BINARY[name], [a, b], 0.0)]
    if not isinstance(a, torch.fx.Node):
        a, b, swapped = b, float(a), True
    else:
        b, swapped = float(b), False
    table = {
        "add": ("add_scalar", b), "mul": ("mul_scalar", b), "sub": ("rsub_scalar", b) if swapped else ("add_scalar", -b),
        "div": ("rdiv_scalar", b) if swapped else ("mul_scalar", 1 / b if b else float("inf")),
    }  # fmt: skip
    code, number = table[name]
    return [(code, [a], number)]


def _bounds(name: str, node: torch.fx.Node) -> tuple[Any, ...]:
    given = [*args_of(node)[1:], *node.kwargs.values()]
    if name == "clamp_min":
        return given[0], None
    if name == "clamp_max":
        return None, given[0]
    if name == "hardtanh":
        return (*given, *(-1, 1)[len(given) :])[:2]
    low = args_of(node)[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = args_of(node)[2] if len(node.args) > 2 else node.kwargs.get("max")
    return low, high


def _expressible(node: torch.fx.Node) -> bool:
    """Whether a chain can hold the node: floating-point operands, plain scalars, a code for what it does."""
    if node.op != "call_function" or not is_native(node):
        return False
    if not 0 < value(node).ndim <= _DIMENSIONS or value(node).numel() == 0:
        return False
    op = op_name(node)
    inputs = node.all_input_nodes
    if not inputs or not all(map(is_native, inputs)):
        return False
    if op in CASTS:
        return isinstance(args_of(node)[0], torch.fx.Node)
    if activation(node):
        return True
    family, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if family != "aten":
        return False
    if name in _UNARY:
        return overload == "default"
    numbers = [v for v in (*node.args, *node.kwargs.values()) if not isinstance(v, torch.fx.Node)]
    if any(isinstance(v, bool) or not isinstance(v, (int, float, type(None))) for v in numbers):
        return False
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        return len(inputs) == 1
    if name == "pow":
        return overload == "Tensor_Scalar" and len(inputs) == 1
    if name == "rsub":
        return overload == "Scalar" and not node.kwargs and len(node.args) == 2
    if name == "div" and (overload.endswith("_mode") or args_of(node)[1] == 0):
        return False
    return name in _BINARY and overload in ("Tensor", "Scalar", "default") and not node.kwargs and len(node.args) == 2
