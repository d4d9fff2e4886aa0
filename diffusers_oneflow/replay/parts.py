"""Parts of a tensor that are put together again."""

from typing import Any

import torch

from ..capture import op_name

_SPLITS = {"aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default"}


def whole(node: torch.fx.Node) -> torch.fx.Node | None:
    """The tensor whose parts a concatenation's operands are, all of them and in order; None if they are not.

    Flux's blocks take texts and images apart at their end, and join them at their beginning.
    """
    parts: Any = node.args[0]
    made = node.meta["val"]
    dim = _argument(node, 1, "dim") % made.dim()
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
        source: torch.fx.Node = args[0]
        size, start = source.meta["val"].shape[dim], _argument(node, 2, "start") or 0
        begin = min(max(start + size, 0) if start < 0 else start, size)
        along, step = _argument(node, 1, "dim") % source.meta["val"].dim(), args[4] if len(args) > 4 else 1
        return (source, begin) if (along, step) == (dim, 1) else (None, 0)
    if "getitem" in str(node.target) and op_name(args[0]) in _SPLITS and not args[0].kwargs:
        source = args[0].args[0]
        if _argument(args[0], 2, "dim") % source.meta["val"].dim() == dim:
            return source, sum(part.shape[dim] for part in args[0].meta["val"][: args[1]])
    return None, 0


def _argument(node: torch.fx.Node, place: int, name: str) -> Any:
    """A number that is 0 if it is left out."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, 0)
