"""Attention with the transpositions around it."""

from __future__ import annotations

from typing import Any

import torch

from ..capture import Program, op_name
from . import native_ops
from .base import Rewrite, args_of, emit, is_native, value
from .channels_last import arguments
from .simplify_views import dims_of

_aten = torch.ops.aten
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class FuseAttention(Rewrite):
    """``sdpa`` of (b, heads, m, d) becomes ``attention`` of (b, m, heads * d).

    The kernel reads heads by strides, so that what a linear layer made goes in as it is, and the result goes into the next
    linear layer without a transposition. Where an operand is not such a transposition, one is put in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masks: dict[tuple[Any, ...], torch.fx.Node] = {}

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        if op_name(node) != "aten.scaled_dot_product_attention.default" or not is_native(node):
            return
        q, k, v, mask, dropout, causal, scale, grouped = arguments(
            node, _NAMES, (None, None, None, None, 0.0, False, None, False)
        )
        shapes = [tuple(value(x).shape) for x in (q, k, v)]
        if any(len(s) != 4 for s in shapes):
            self.why_not(node, "its operands do not have 4 dimensions")
        elif dropout or grouped:
            self.why_not(node, "dropout, or queries in groups")
        elif len({s[:2] for s in shapes}) > 1 or len({s[3] for s in shapes}) > 1:
            self.why_not(node, "batches, heads or head sizes differ")
        elif mask is not None and (value(mask).dtype not in (torch.bool, value(q).dtype) or causal):
            self.why_not(node, f"a mask of {value(mask).dtype} beside {value(q).dtype}, or one with is_causal")
        else:
            self._fuse(program, node, (q, k, v), mask, causal, scale)

    def _fuse(
        self,
        program: Program,
        node: torch.fx.Node,
        operands: tuple[torch.fx.Node, ...],
        mask: torch.fx.Node | None,
        causal: bool,
        scale: float | None,
    ) -> None:
        b, heads, m, d = value(node).shape
        dtype = value(node).dtype
        with program.graph.inserting_before(node):
            if mask is not None and value(mask).dtype == torch.bool:
                mask = self._additive(program, mask, dtype)
            rows = [self._rows(program, x) for x in operands]
            made = emit(program, native_ops.attention, (*rows, mask, heads, causal, scale), (b, m, heads * d), dtype, node)
            split = emit(program, _aten.view.default, (made, [b, m, heads, d]), (b, m, heads, d), dtype, node)
            back = emit(program, _aten.permute.default, (split, [0, 2, 1, 3]), (b, heads, m, d), dtype, node)
        self.replace(program, node, back)

    def _additive(self, program: Program, mask: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
        """A bool mask as what is added to the scores, once for all layers."""
        key = mask, dtype
        if key not in self._masks:
            self._masks[key] = emit(program, native_ops.additive_mask, (mask, dtype), value(mask).shape, dtype, mask)
        return self._masks[key]

    @staticmethod
    def _rows(program: Program, x: torch.fx.Node) -> torch.fx.Node:
        """(b, heads, n, d) as (b, n, heads * d)."""
        b, heads, n, d = value(x).shape
        dtype = value(x).dtype
        if op_name(x) in ("aten.permute.default", "aten.transpose.int") and dims_of(x) == [0, 2, 1, 3]:
            x = args_of(x)[0]
        else:
            x = emit(program, _aten.permute.default, (x, [0, 2, 1, 3]), (b, n, heads, d), dtype, x)
        return emit(program, _aten.view.default, (x, [b, n, heads * d]), (b, n, heads * d), dtype, x)
