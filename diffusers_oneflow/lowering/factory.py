"""Ops that make tensors from nothing, and assertions of the exporter."""

import oneflow as flow
import torch

from .kernels import checked as _C
from .registry import lowering
from .types import cast, flow_dtype, torch_dtype


def filled(shape, value, dtype: torch.dtype):
    """A CPU tensor of `value`; OneFlow's constant has no bool kernel, so bool goes through int8."""
    if dtype == torch.bool:
        value = int(bool(value))
    made = flow_dtype(torch.int8 if dtype == torch.bool else dtype)
    return cast(_C.constant(list(shape), value, dtype=made, device=flow.device("cpu")), dtype)


def _default_dtype(value) -> torch.dtype:
    if isinstance(value, bool):
        return torch.bool
    return torch.int64 if isinstance(value, int) else torch.get_default_dtype()


@lowering("aten.full.default")
def full(size, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None):
    return filled(size, fill_value, dtype or _default_dtype(fill_value))


@lowering("aten.zeros.default", "aten.empty.memory_format")
def zeros(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return filled(size, 0, dtype or torch.get_default_dtype())


@lowering("aten.ones.default")
def ones(size, *, dtype=None, layout=None, device=None, pin_memory=None):
    return filled(size, 1, dtype or torch.get_default_dtype())


@lowering("aten.full_like.default")
def full_like(self, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return filled(self.shape, fill_value, dtype or torch_dtype(self))


@lowering("aten.zeros_like.default", "aten.empty_like.default")
def zeros_like(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return filled(self.shape, 0, dtype or torch_dtype(self))


@lowering("aten.ones_like.default")
def ones_like(self, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return filled(self.shape, 1, dtype or torch_dtype(self))


@lowering("aten.new_zeros.default")
def new_zeros(self, size, *, dtype=None, layout=None, device=None, pin_memory=None):
    return filled(size, 0, dtype or torch_dtype(self))


@lowering("aten.new_ones.default")
def new_ones(self, size, *, dtype=None, layout=None, device=None, pin_memory=None):
    return filled(size, 1, dtype or torch_dtype(self))


@lowering("aten.new_full.default")
def new_full(self, size, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None):
    return filled(size, fill_value, dtype or torch_dtype(self))


@lowering("aten.scalar_tensor.default")
def scalar_tensor(s, *, dtype=None, layout=None, device=None, pin_memory=None):
    return filled([], s, dtype or torch.get_default_dtype())


@lowering("aten.arange.start_step")
def arange_start_step(start, end, step=1, *, dtype=None, layout=None, device=None, pin_memory=None):
    if dtype is None:
        whole = all(isinstance(v, int) for v in (start, end, step))
        dtype = torch.int64 if whole else torch.get_default_dtype()
    return cast(_C.arange(start, end, step, dtype=flow_dtype(dtype), device=flow.device("cpu")), dtype)


@lowering("aten.arange.start")
def arange_start(start, end, *, dtype=None, layout=None, device=None, pin_memory=None):
    return arange_start_step(start, end, 1, dtype=dtype)


@lowering("aten.arange.default")
def arange(end, *, dtype=None, layout=None, device=None, pin_memory=None):
    return arange_start_step(0, end, 1, dtype=dtype)
