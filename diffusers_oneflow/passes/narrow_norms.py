"""Norms that a module computes in float32 between half types."""

from __future__ import annotations

from typing import Any

import torch

from ..capture import Program, op_name
from .base import CASTS, HALVES, Rewrite, args_of, emit, sole_user, value
from .channels_last import arguments

# Their arguments, and the eps where it is left out: that of RMS norm depends on the dtype, which was float32.
_NORMS = {
    "aten.group_norm.default": (("input", "num_groups", "weight", "bias", "eps"), 1e-5),
    "aten.layer_norm.default": (("input", "normalized_shape", "weight", "bias", "eps"), 1e-5),
    "aten.rms_norm.default": (("input", "normalized_shape", "weight", "eps"), torch.finfo(torch.float32).eps),
}
_TENSORS = ("input", "weight", "bias")
# Of a group norm, in whose kernel they are.
_ACTIVATIONS = ("aten.silu.default", "aten.relu.default")


class NarrowNorms(Rewrite):
    """``norm(x.float(), w.float(), b.float()).to(x.dtype)`` is the norm in x's dtype, which the pack computes in float32 anyway.

    So autocast casts around each norm, and so do norms of diffusers that are called FP32.
    """

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        half = value(node).dtype if op_name(node) in CASTS else None
        if half not in HALVES:
            return
        source = args_of(node)[0]
        act = source if op_name(source) in _ACTIVATIONS else None
        norm = source if act is None else args_of(act)[0]
        if op_name(norm) not in _NORMS or (act is not None and op_name(norm) != "aten.group_norm.default"):
            return
        if any(sole_user(n) is None or n in program.outputs for n in (source, norm)):
            return self.why_not(norm, "its result is used in float32 too")
        names, eps = _NORMS[op_name(norm)]
        args = arguments(norm, names, (None,) * len(names))
        for place, name in enumerate(names):
            if name in _TENSORS and args[place] is not None:
                args[place] = _narrow(args[place], half)
                if args[place] is None:
                    return self.why_not(norm, f"it is computed of something that is not {half}")
        args[-1] = eps if args[-1] is None else args[-1]
        with program.graph.inserting_before(node):
            made = emit(program, norm.target, tuple(args), value(norm).shape, half, norm)
            if act is not None:
                made = emit(program, act.target, (made,), value(act).shape, half, act)
        self.replace(program, node, made)


def _narrow(node: Any, half: torch.dtype) -> torch.fx.Node | None:
    """What was cast to float32, if it was of this dtype."""
    if op_name(node) not in CASTS or value(node).dtype != torch.float32:
        return None
    before: torch.fx.Node = args_of(node)[0]
    return before if value(before).dtype == half else None
