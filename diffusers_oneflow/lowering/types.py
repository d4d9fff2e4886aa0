"""Dtypes of torch and OneFlow, and torch's type promotion."""

from __future__ import annotations

from typing import Any, TypeAlias

import oneflow as flow
import torch

from .kernels import checked as _C
from .registry import Refused

TO_FLOW = {
    torch.float32: flow.float32,
    torch.float64: flow.float64,
    torch.float16: flow.float16,
    torch.bfloat16: flow.bfloat16,
    torch.int64: flow.int64,
    torch.int32: flow.int32,
    torch.int8: flow.int8,
    torch.uint8: flow.uint8,
    torch.bool: flow.bool,
}
# A OneFlow tensor or a number of Python.
Operand: TypeAlias = Any

TO_TORCH = {of: th for th, of in TO_FLOW.items()}


def flow_dtype(dtype: torch.dtype) -> flow.dtype:
    """OneFlow's name of a torch dtype; raises `Refused` where it has none."""
    try:
        return TO_FLOW[dtype]
    except KeyError:
        raise Refused(f"OneFlow has no {dtype}; use float32, float64, int64, int32, int8, uint8 or bool") from None


def torch_dtype(tensor: flow.Tensor) -> torch.dtype:
    """The torch dtype of a OneFlow tensor."""
    return TO_TORCH[tensor.dtype]


def cast(tensor: flow.Tensor, dtype: torch.dtype) -> flow.Tensor:
    """`tensor` in `dtype`; the tensor itself if it has that dtype."""
    target = flow_dtype(dtype)
    return tensor if tensor.dtype == target else _C.cast(tensor, target, False)


def _stand_in(value: Operand) -> Any:
    """What torch.result_type needs to know of an operand: dtype, and whether it has dimensions."""
    if isinstance(value, flow.Tensor):
        return torch.empty((1,) if value.ndim else (), dtype=torch_dtype(value), device="meta")
    return value


def promoted(a: Operand, b: Operand) -> torch.dtype:
    """The dtype that torch computes ``a <op> b`` in (tensors or Python scalars)."""
    return torch.result_type(_stand_in(a), _stand_in(b))


def promote(a: Operand, b: Operand) -> tuple[Any, ...]:
    """`a` and `b` cast to their common torch dtype; Python scalars stay as they are."""
    dtype = promoted(a, b)
    return tuple(cast(v, dtype) if isinstance(v, flow.Tensor) else v for v in (a, b))


def floating(tensor: flow.Tensor) -> flow.Tensor:
    """Integer and bool tensors as torch's default float dtype, as torch's unary float functions do."""
    return tensor if torch_dtype(tensor).is_floating_point else cast(tensor, torch.get_default_dtype())


def fitting(scalar: Any, dtype: torch.dtype) -> Any:
    """`scalar`, if it is a value of `dtype`; torch wraps others around in small integer dtypes, OneFlow does not."""
    if not dtype.is_floating_point and isinstance(scalar, int):
        bounds = torch.iinfo(dtype)
        if not bounds.min <= scalar <= bounds.max:
            raise Refused(f"the scalar {scalar} is not within {dtype}")
    return scalar
