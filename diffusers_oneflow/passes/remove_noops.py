"""Drop nodes that hand on their input."""

from __future__ import annotations

import torch

from ..capture import Program, op_name
from .base import Rewrite, args_of, value

_ALWAYS = {
    "aten.alias.default", "aten.detach.default", "aten.clone.default", "aten.contiguous.default",
    "aten.lift_fresh_copy.default", "aten.detach_.default",
}  # fmt: skip
_SAME_SHAPE = {
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.expand.default", "aten.slice.Tensor",
    "aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten._to_copy.default", "aten.type_as.default",
    "aten.to.other", "aten.expand_as.default", "aten.flatten.using_ints", "aten.unflatten.int",
}  # fmt: skip


class RemoveNoops(Rewrite):
    """Copies, casts and views that change nothing, dropout outside of training, ``x / 1``, ``x * 1`` and ``x + 0``.

    Empty parts of ``cat`` go too.

    Diffusers' blocks divide by an output scale that is 1 in nearly every model: 38 passes over
    memory in Stable Diffusion's UNet alone.
    """

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        op = op_name(node)
        if op == "aten._assert_tensor_metadata.default":
            program.graph.erase_node(node)
            return
        if op == "aten.cat.default":
            self._without_empty(node)
        if not node.args or not isinstance(args_of(node)[0], torch.fx.Node):
            return
        source = args_of(node)[0]
        if op in _ALWAYS or (op in _SAME_SHAPE and _alike(node, source)):
            self.replace(program, node, source)
        elif op == "aten.dropout.default":
            if args_of(node)[2] and args_of(node)[1]:
                self.why_not(node, "the module is in training mode")
            else:
                self.replace(program, node, source)
        elif op in ("aten.div.Tensor", "aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor"):
            self._neutral(program, node, source, op)

    def _without_empty(self, node: torch.fx.Node) -> None:
        """Leave out parts without elements, which OneFlow has no tensors for: a rotary axis of size 0, say."""
        kept = [part for part in args_of(node)[0] if value(part).numel()]
        same = all(value(part).dtype == value(node).dtype for part in kept)
        if kept and len(kept) < len(args_of(node)[0]) and same:
            node.args = (kept, *args_of(node)[1:])
            self.applied += 1

    def _neutral(self, program: Program, node: torch.fx.Node, source: torch.fx.Node, op: str) -> None:
        other = args_of(node)[1]
        neutral = 1 if op in ("aten.div.Tensor", "aten.mul.Tensor") else 0
        if isinstance(other, (torch.fx.Node, bool)) or other != neutral or node.kwargs:
            return
        if not _alike(node, source):
            self.why_not(node, "the neutral scalar changes the dtype")
        elif neutral == 0 and value(source).dtype.is_floating_point:
            # -0.0 + 0 is 0.0: kept, for results equal to the bit.
            self.why_not(node, "adding 0 changes the sign of -0.0")
        else:
            self.replace(program, node, source)


def _alike(node: torch.fx.Node, source: torch.fx.Node) -> bool:
    a, b = value(node), value(source)
    return a.shape == b.shape and a.dtype == b.dtype
