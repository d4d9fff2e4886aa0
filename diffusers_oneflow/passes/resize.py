"""Smooth resizing of images as two products with constant matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from ..capture import Program, op_name
from .base import Rewrite, emit, is_native, value
from .channels_last import arguments

_aten = torch.ops.aten
_PLAIN = {"upsample_bilinear2d": _aten.upsample_bilinear2d.default, "upsample_bicubic2d": _aten.upsample_bicubic2d.default}
_ANTIALIASED = {
    "_upsample_bilinear2d_aa": _aten._upsample_bilinear2d_aa.default,
    "_upsample_bicubic2d_aa": _aten._upsample_bicubic2d_aa.default,
}


class ResizeByMatrices(Rewrite):
    """What OneFlow cannot resize: with antialiasing, and by factors that are not whole.

    Each row of the result is a weighted sum of rows, and each column one of columns. The weights are read off torch's own
    op, which gets the unit matrix as an image.
    """

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        name, overload = [*op_name(node).split("."), "", ""][1:3]
        op = _ANTIALIASED.get(name) or _PLAIN.get(name)
        if op is None:
            return
        schema = (
            "input",
            "output_size",
            "align_corners",
            *(("scale_factors",) if overload == "vec" else ("scales_h", "scales_w")),
        )
        x, _, align, *scales = arguments(node, schema, (None,) * len(schema))
        scales = scales[0] if overload == "vec" else scales
        scales = [None, None] if scales is None else list(scales)
        if name in _PLAIN and all(s is None or s == int(s) for s in scales):
            return
        if not is_native(node):
            self.why_not(node, f"it is of {value(node).dtype}")
            return
        shape, dtype = list(value(node).shape), value(node).dtype
        before = list(value(x).shape)
        with program.graph.inserting_before(_first_op(program)):
            matrices = [self._matrix(program, node, op, before[i], shape[i], align, scales[i - 2], i) for i in (2, 3)]
        with program.graph.inserting_before(node):
            made = self._cast(program, x, torch.float32, node)
            made = self._op(program, _aten.linear.default, (made, matrices[1]), [*before[:3], shape[3]], node)
            made = self._op(program, _aten.permute.default, (made, [0, 1, 3, 2]), [*shape[:2], shape[3], before[2]], node)
            made = self._op(program, _aten.linear.default, (made, matrices[0]), [*shape[:2], shape[3], shape[2]], node)
            made = self._op(program, _aten.permute.default, (made, [0, 1, 3, 2]), shape, node)
            made = self._cast(program, made, dtype, node)
        self.replace(program, node, made)

    @staticmethod
    def _matrix(
        program: Program,
        node: torch.fx.Node,
        op: Callable[..., torch.Tensor],
        before: int,
        after: int,
        align: bool,
        scale: float | None,
        dim: int,
    ) -> torch.fx.Node:
        """The weights (after, before) of one dimension, as a constant."""
        # One channel, and two columns: torch's op takes many channels of one column for another layout, and errs.
        unit = torch.eye(before, dtype=torch.float64).view(before, 1, before, 1).repeat(1, 1, 1, 2)
        weights = op(unit, [after, 2], align, scale, None)[:, 0, :, 0].T
        made = program.graph.placeholder(f"resize_{node.name}_{dim}")
        made.meta = {"val": torch.empty((after, before), device="meta")}
        program.constants[made.name] = weights.float().contiguous()
        return made

    @staticmethod
    def _op(
        program: Program, target: Callable[..., Any], args: tuple[Any, ...], shape: Sequence[int], like: torch.fx.Node
    ) -> torch.fx.Node:
        return emit(program, target, args, shape, torch.float32, like)

    @staticmethod
    def _cast(program: Program, x: torch.fx.Node, dtype: torch.dtype, like: torch.fx.Node) -> torch.fx.Node:
        if value(x).dtype == dtype:
            return x
        made = emit(program, _aten._to_copy.default, (x,), value(x).shape, dtype, like)
        made.kwargs = {"dtype": dtype}
        return made


def _first_op(program: Program) -> torch.fx.Node:
    return next(cast(torch.fx.Node, n) for n in program.graph.nodes if n.op != "placeholder")
