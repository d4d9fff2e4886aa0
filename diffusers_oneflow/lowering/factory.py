"""Ops that make tensors from nothing, and assertions of the exporter."""

from __future__ import annotations

from collections.abc import Sequence

import oneflow as flow
import torch

from .kernels import checked as _C
from .registry import lowering
from .types import Operand, cast, flow_dtype, torch_dtype


def filled(shape: Sequence[int], value: Operand, dtype: torch.dtype) -> flow.Tensor:
    """A tensor of `value` where the graph runs; OneFlow's constant has no bool kernel, so bool goes through int8."""
    if dtype == torch.bool:
        value = int(bool(value))
    made = flow_dtype(torch.int8 if dtype == torch.bool else dtype)
    return cast(_C.constant(list(shape), value, dtype=made), dtype)


def _default_dtype(value: float) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    return torch.int64 if isinstance(value, int) else torch.get_default_dtype()


@lowering("aten.full.default")
def full(
    size: Sequence[int],
    fill_value: float,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> flow.Tensor:
    return filled(size, fill_value, dtype or _default_dtype(fill_value))


@lowering("aten.zeros.default", "aten.empty.memory_format")
def zeros(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> flow.Tensor:
    return filled(size, 0, dtype or torch.get_default_dtype())


@lowering("aten.ones.default")
def ones(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> flow.Tensor:
    return filled(size, 1, dtype or torch.get_default_dtype())


@lowering("aten.full_like.default")
def full_like(
    self: flow.Tensor,
    fill_value: float,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> flow.Tensor:
    return filled(self.shape, fill_value, dtype or torch_dtype(self))


@lowering("aten.zeros_like.default", "aten.empty_like.default")
def zeros_like(
    self: flow.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> flow.Tensor:
    return filled(self.shape, 0, dtype or torch_dtype(self))


@lowering("aten.ones_like.default")
def ones_like(
    self: flow.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
    memory_format: object = None,
) -> flow.Tensor:
    return filled(self.shape, 1, dtype or torch_dtype(self))


@lowering("aten.new_zeros.default")
def new_zeros(
    self: flow.Tensor,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> flow.Tensor:
    return filled(size, 0, dtype or torch_dtype(self))


@lowering("aten.new_ones.default")
def new_ones(
    self: flow.Tensor,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> flow.Tensor:
    return filled(size, 1, dtype or torch_dtype(self))


@lowering("aten.new_full.default")
def new_full(
    self: flow.Tensor,
    size: Sequence[int],
    fill_value: float,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> flow.Tensor:
    return filled(size, fill_value, dtype or torch_dtype(self))


@lowering("aten.scalar_tensor.default")
def scalar_tensor(
    s: float, *, dtype: torch.dtype | None = None, layout: object = None, device: object = None, pin_memory: object = None
) -> flow.Tensor:
    return filled([], s, dtype or torch.get_default_dtype())


@lowering("aten.arange.start_step")
def arange_start_step(
    start: float,
    end: float,
    step: float = 1,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> flow.Tensor:
    if dtype is None:
        whole = all(isinstance(v, int) for v in (start, end, step))
        dtype = torch.int64 if whole else torch.get_default_dtype()
    return cast(_C.arange(start, end, step, dtype=flow_dtype(dtype)), dtype)


@lowering("aten.arange.start")
def arange_start(
    start: float,
    end: float,
    *,
    dtype: torch.dtype | None = None,
    layout: object = None,
    device: object = None,
    pin_memory: object = None,
) -> flow.Tensor:
    return arange_start_step(start, end, 1, dtype=dtype)


@lowering("aten.arange.default")
def arange(
    end: float, *, dtype: torch.dtype | None = None, layout: object = None, device: object = None, pin_memory: object = None
) -> flow.Tensor:
    return arange_start_step(0, end, 1, dtype=dtype)
