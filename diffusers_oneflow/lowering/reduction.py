"""Reductions, softmax and scans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import oneflow as flow
import torch

from .factory import filled
from .kernels import checked as _C
from .logic import chosen
from .registry import Refused, lowering
from .shape import reshaped
from .types import cast, floating, torch_dtype


def _dims(dim: int | Sequence[int] | None, ndim: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(ndim))
    return [d % ndim for d in ([dim] if isinstance(dim, int) else dim)] if ndim else []


def _reduced(function: Callable[..., flow.Tensor], x: flow.Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> flow.Tensor:
    dims = _dims(dim, x.ndim)
    return function(x, dims, keepdim) if dims else x


@lowering("aten.sum.default")
def sum_all(self: flow.Tensor, *, dtype: torch.dtype | None = None) -> flow.Tensor:
    return sum_(self, None, dtype=dtype)


@lowering("aten.sum.dim_IntList")
def sum_(
    self: flow.Tensor, dim: int | Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> flow.Tensor:
    dtype = dtype or (torch_dtype(self) if torch_dtype(self).is_floating_point else torch.int64)
    # There are kernels for int64 and floats only.
    x = cast(cast(self, dtype), dtype if dtype.is_floating_point else torch.int64)
    return cast(_reduced(_C.reduce_sum, x, dim, keepdim), dtype)


@lowering("aten.mean.default")
def mean_all(self: flow.Tensor, *, dtype: torch.dtype | None = None) -> flow.Tensor:
    return mean(self, None, dtype=dtype)


@lowering("aten.mean.dim")
def mean(
    self: flow.Tensor, dim: int | Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> flow.Tensor:
    return _reduced(_C.reduce_mean, cast(self, dtype) if dtype else self, dim, keepdim)


@lowering("aten.amax.default")
def amax(self: flow.Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> flow.Tensor:
    return _extreme(_C.reduce_max, self, list(dim), keepdim)


@lowering("aten.amin.default")
def amin(self: flow.Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> flow.Tensor:
    return _extreme(_C.reduce_min, self, list(dim), keepdim)


def _extreme(function: Callable[..., flow.Tensor], x: flow.Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> flow.Tensor:
    """The largest or smallest value; NaN if there is one, which OneFlow leaves out."""
    made = _reduced(function, x, dim, keepdim)
    if not torch_dtype(x).is_floating_point:
        return made
    nan = _reduced(_C.reduce_max, cast(_C.not_equal(x, x), torch.int32), dim, keepdim)
    return chosen(cast(nan, torch.bool), filled([], math.nan, torch_dtype(x)), made)


@lowering("aten.any.default")
def any_all(self: flow.Tensor) -> flow.Tensor:
    return any_(self, None)


@lowering("aten.any.dim")
def any_(self: flow.Tensor, dim: int | Sequence[int] | None, keepdim: bool = False) -> flow.Tensor:
    return _truth(_C.reduce_max, self, dim, keepdim)


@lowering("aten.all.default")
def all_all(self: flow.Tensor) -> flow.Tensor:
    return all_(self, None)


@lowering("aten.all.dim")
def all_(self: flow.Tensor, dim: int | Sequence[int] | None, keepdim: bool = False) -> flow.Tensor:
    return _truth(_C.reduce_min, self, dim, keepdim)


def _truth(function: Callable[..., flow.Tensor], x: flow.Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> flow.Tensor:
    made = _reduced(function, cast(x, torch.bool), dim, keepdim)
    return cast(made, torch.uint8 if torch_dtype(x) == torch.uint8 else torch.bool)


@lowering("aten.var.correction")
def var(
    self: flow.Tensor, dim: int | Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> flow.Tensor:
    dims = _dims(dim, self.ndim)
    count = math.prod(self.shape[d] for d in dims)
    correction = 1 if correction is None else correction
    if count - correction <= 0:
        raise Refused("no degree of freedom is left")
    centred = _C.sub(self, _C.reduce_mean(self, dims, True))
    return _C.div(_reduced(_C.reduce_sum, _C.mul(centred, centred), dims, keepdim), float(count - correction))


def _position(function: Callable[..., flow.Tensor], x: flow.Tensor, dim: int | None, keepdim: bool) -> flow.Tensor:
    if dim is None:
        found = function(reshaped(x, [-1]), 0, False, flow.int64)
        return reshaped(found, [1] * x.ndim) if keepdim else found
    return function(x, dim % x.ndim, keepdim, flow.int64) if x.ndim else filled([], 0, torch.int64)


@lowering("aten.argmax.default")
def argmax(self: flow.Tensor, dim: int | None = None, keepdim: bool = False) -> flow.Tensor:
    return _position(_C.argmax, self, dim, keepdim)


@lowering("aten.argmin.default")
def argmin(self: flow.Tensor, dim: int | None = None, keepdim: bool = False) -> flow.Tensor:
    return _position(_C.argmin, self, dim, keepdim)


@lowering("aten.cumsum.default")
def cumsum(self: flow.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> flow.Tensor:
    if dtype is None and not torch_dtype(self).is_floating_point:
        dtype = torch.int64
    dtype = dtype or torch_dtype(self)
    # There are kernels for int64 and floats only.
    x = cast(self, dtype if dtype.is_floating_point else torch.int64)
    return cast(_C.cumsum(x, dim % x.ndim) if x.ndim else x, dtype)


def _last(function: Callable[..., flow.Tensor], x: flow.Tensor, dim: int, dtype: torch.dtype | None) -> flow.Tensor:
    """`function` of a float tensor along `dim`; without dimensions OneFlow's own end the process."""
    x = floating(x if dtype is None else cast(x, dtype))
    return function(x, dim % x.ndim) if x.ndim else reshaped(function(reshaped(x, [1]), 0), [])


def _log_softmax(x: flow.Tensor, dim: int) -> flow.Tensor:
    # OneFlow's own is off by 1e-6.
    shifted = _C.sub(x, _C.reduce_max(x, [dim], True))
    return _C.sub(shifted, _C.log(_C.reduce_sum(_C.exp(shifted), [dim], True)))


@lowering("aten.softmax.int")
def softmax(self: flow.Tensor, dim: int, dtype: torch.dtype | None = None) -> flow.Tensor:
    return _last(_C.softmax, self, dim, dtype)


@lowering("aten._softmax.default")
def softmax_(self: flow.Tensor, dim: int, half_to_float: bool) -> flow.Tensor:
    return _last(_C.softmax, self, dim, None)


@lowering("aten.log_softmax.int")
def log_softmax(self: flow.Tensor, dim: int, dtype: torch.dtype | None = None) -> flow.Tensor:
    return _last(_log_softmax, self, dim, dtype)


@lowering("aten._log_softmax.default")
def log_softmax_(self: flow.Tensor, dim: int, half_to_float: bool) -> flow.Tensor:
    return _last(_log_softmax, self, dim, None)


@lowering("aten.linalg_vector_norm.default")
def linalg_vector_norm(
    self: flow.Tensor,
    ord: float = 2,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> flow.Tensor:
    if ord != 2:
        raise Refused(f"ord={ord}; only the 2-norm is lowered")
    x = cast(self, dtype) if dtype else self
    if not x.ndim:
        return _C.abs(x)
    return _C.sqrt(_reduced(_C.reduce_sum, _C.mul(x, x), dim, keepdim))
