"""The pack's lowering of elementwise chains, and of elementwise ops that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import oneflow as flow
import torch

from ..lowering.registry import Refused
from ..lowering.types import cast, torch_dtype
from ..passes.native_ops import CODES
from .lowering import native
from .node import ACTIVATIONS, TYPES, broadcast_strides, node


@native("oneflow.chain.default")
def chain(
    operands: Sequence[flow.Tensor], instructions: Sequence[tuple[str, int, int, Any]], dtype: torch.dtype | None = None
) -> flow.Tensor:
    types = [torch_dtype(x) for x in operands]
    if any(t not in TYPES for t in types):
        raise Refused("a dtype that the kernel does not take")
    if len(operands) > 16 or len(instructions) > 64:
        raise Refused(f"{len(operands)} operands and {len(instructions)} instructions; the kernel takes 16 and 64")
    shape = torch.broadcast_shapes(*(tuple(x.shape) for x in operands))
    if dtype is None:
        dtype = types[0]
        for other in types[1:]:
            dtype = torch.promote_types(dtype, other)
    params: list[Any] = [list(shape), TYPES[dtype], len(operands)]
    for x, kind in zip(operands, types):
        params += [TYPES[kind], broadcast_strides(x.shape, shape)]
    params.append(len(instructions))
    for code, a, b, value in instructions:
        number = ACTIVATIONS[value] if code == "act" else value
        params += [CODES.index(code), a, b, float(number)]
    return node("dfo_chain", operands, shape, dtype, *params)


@native("oneflow.additive_mask.default")
def additive_mask(mask: flow.Tensor, dtype: torch.dtype) -> flow.Tensor:
    return chain([cast(mask, torch.float32)], [("log", 0, 0, 0.0)], dtype)
