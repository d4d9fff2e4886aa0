"""Parts of a tensor that are put together again."""

from typing import Any

import torch

from ..capture import op_name
from ..passes.channels_last import arguments

_SPLITS = {"aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default"}


def whole(node: torch.fx.Node) -> torch.fx.Node | None:
    """The tensor whose parts a concatenation's operands are, all of them and in order; None if they are not.

    Flux's blocks take texts and images apart at their end, and join them at their beginning.
    """
    made = node.meta["val"]
    parts, dim = arguments(node, ("tensors", "dim"), (None, 0))
    dim %= made.dim()
    found, end = None, 0
    for part in parts:
        source, start = _part(part, dim)
        if source is None or source is not (found or source) or start != end:
            return None
        found, end = source, end + part.meta["val"].shape[dim]
    alike = found is not None and (found.meta["val"].shape, found.meta["val"].dtype) == (made.shape, made.dtype)
    return found if alike else None


def _part(node: torch.fx.Node, dim: int) -> tuple[torch.fx.Node | None, int]:
    """Of what a node is a part in dimension `dim`, and where it begins there."""
    args: Any = node.args
    if node.op != "call_function" or node.kwargs:
        return None, 0
    if op_name(node) == "aten.slice.Tensor":
        source, along, start, end, step = arguments(node, ("self", "dim", "start", "end", "step"), (None, 0, None, None, 1))
        begin, _, _ = slice(start, end).indices(source.meta["val"].shape[dim])
        return (source, begin) if (along % source.meta["val"].dim(), step) == (dim, 1) else (None, 0)
    if "getitem" in str(node.target) and op_name(args[0]) in _SPLITS and not args[0].kwargs:
        source, _, along = arguments(args[0], ("self", "", "dim"), (None, None, 0))
        if along % source.meta["val"].dim() == dim:
            return source, sum(part.shape[dim] for part in args[0].meta["val"][: args[1]])
    return None, 0
