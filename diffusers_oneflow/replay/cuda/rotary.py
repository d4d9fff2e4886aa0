"""Rotary embeddings: ``x * cos + turned(x) * sin``, where each pair of neighbours (a, b) is turned to (-b, a)."""

from collections.abc import Sequence
from typing import Any

import torch

from ...capture import op_name
from ...passes.channels_last import arguments
from ..lowering import RESHAPES
from .chains import Instructions


def turned(node: Any) -> torch.fx.Node | None:
    """What of `node` are the turned pairs, (..., 2 n) as it is, and nothing on the way has another reader; None for other nodes.

    Diffusers unbinds the pairs, negates the second numbers, and stacks them the other way round.
    """
    stack = _argument(node, RESHAPES)
    if not _is(stack, "aten.stack.default") or len(stack.args[0]) != 2 or not _is_last(stack):
        return None
    negated, first = stack.args[0]
    if not _is(negated, "oneflow.chain.default") or [i[0] for i in negated.args[1]] != ["neg"]:
        return None
    (second,) = negated.args[0]
    parts = [first, second]
    if any("getitem" not in str(n.target) for n in parts) or [n.args[1] for n in parts] != [0, 1]:
        return None
    unbound = first.args[0]
    if not _is(unbound, "aten.unbind.int") or second.args[0] is not unbound or not _is_last(unbound):
        return None
    pairs = unbound.args[0]
    source = _argument(pairs, RESHAPES)
    if source is None or pairs.meta["val"].shape[-1] != 2:
        return None
    whole, made = source.meta["val"], node.meta["val"]
    inside = (pairs, first, second, negated, stack, node)
    if whole.shape != made.shape or whole.shape[-1] % 2 or whole.dtype != made.dtype or any(len(n.users) != 1 for n in inside):
        return None
    return source if len(unbound.users) == 2 else None


def _is(node: Any, *ops: str) -> bool:
    return isinstance(node, torch.fx.Node) and op_name(node) in ops


def _argument(node: Any, ops: set[str]) -> Any:
    """What an op of these reads; None of other nodes."""
    return node.args[0] if _is(node, *ops) else None


def _is_last(node: torch.fx.Node) -> bool:
    """Whether things are stacked, or unbound, in the last dimension."""
    _, dim = arguments(node, ("", "dim"), (None, 0))
    made = node.meta["val"]
    ndim: int = made.dim() if isinstance(made, torch.Tensor) else made[0].dim() + 1
    return bool(dim % ndim == ndim - 1)


def rotation(node: torch.fx.Node, at: int, instructions: Instructions) -> tuple[int, int] | None:
    """Which operands of a chain are the cosine and the sine, where operand `at` is what is rotated and nothing else is done."""
    operands: Sequence[Any] = node.args[0]  # type: ignore[assignment]
    if [i[0] for i in instructions] != ["mul", "mul", "add"] or {*instructions[2][1:3]} != {len(operands), len(operands) + 1}:
        return None
    products = [set(i[1:3]) for i in instructions[:2]]
    for own, other in (products, products[::-1]):
        turns = [i for i in other if i < len(operands) and turned(operands[i]) is operands[at]]
        if at in own and len(own) == len(other) == 2 and len(turns) == 1 and max(*own, *other) < len(operands):
            return next(iter(own - {at})), next(iter(other - {*turns}))
    return None
