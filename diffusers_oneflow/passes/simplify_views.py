"""Permutations and views that undo each other."""

from __future__ import annotations

import torch

from ..capture import Program, op_name
from .base import Rewrite, args_of, emit, value

_aten = torch.ops.aten
_PERMUTES = {"aten.permute.default", "aten.transpose.int"}
_VIEWS = {"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.unsqueeze.default",
          "aten.flatten.using_ints", "aten.squeeze.dim", "aten.squeeze.dims"}  # fmt: skip


class SimplifyViews(Rewrite):
    """A permutation of a permutation is one, or none; so is a view of a view.

    What `ChannelsLast` and `FuseAttention` leave between the blocks of a UNet cancels here.
    """

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        op = op_name(node)
        if op not in _PERMUTES and op not in _VIEWS:
            return
        source = args_of(node)[0]
        shape = value(node).shape
        if op in _PERMUTES:
            dims = dims_of(node)
            if op_name(source) in _PERMUTES:
                inner = dims_of(source)
                dims, source = [inner[d] for d in dims], args_of(source)[0]
            elif dims != list(range(len(dims))):
                return
            target, args = _aten.permute.default, (source, dims)
            same = dims == list(range(len(dims)))
        else:
            while op_name(source) in _VIEWS:
                source = args_of(source)[0]
            same = value(source).shape == shape
            if source is args_of(node)[0] and not same:
                return
            target, args = _aten.view.default, (source, list(shape))
        if same:
            self.replace(program, node, source)
            return
        with program.graph.inserting_before(node):
            self.replace(program, node, emit(program, target, args, shape, value(node).dtype, node))


def dims_of(node: torch.fx.Node) -> list[int]:
    """The permutation of a permute or a transpose."""
    ndim = value(node).ndim
    if op_name(node) == "aten.permute.default":
        return [d % ndim for d in args_of(node)[1]]
    dims = list(range(ndim))
    if ndim:
        a, b = (d % ndim for d in args_of(node)[1:3])
        dims[a], dims[b] = dims[b], dims[a]
    return dims
