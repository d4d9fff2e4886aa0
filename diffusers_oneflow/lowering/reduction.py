"""Reductions, softmax and scans."""

import math

import oneflow as flow
import torch

from .kernels import checked as _C
from .registry import Refused, lowering
from .types import cast, floating, torch_dtype


def _dims(dim, ndim: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(ndim))
    return [d % ndim for d in ([dim] if isinstance(dim, int) else dim)] if ndim else []


def _reduced(function, x, dim, keepdim):
    dims = _dims(dim, x.ndim)
    return function(x, dims, keepdim) if dims else x


@lowering("aten.sum.dim_IntList", "aten.sum.default")
def sum_(self, dim=None, keepdim=False, *, dtype=None):
    if dtype is None and not torch_dtype(self).is_floating_point:
        dtype = torch.int64
    return _reduced(_C.reduce_sum, cast(self, dtype) if dtype else self, dim, keepdim)


@lowering("aten.mean.dim", "aten.mean.default")
def mean(self, dim=None, keepdim=False, *, dtype=None):
    return _reduced(_C.reduce_mean, cast(self, dtype) if dtype else self, dim, keepdim)


@lowering("aten.amax.default")
def amax(self, dim=(), keepdim=False):
    return _reduced(_C.reduce_max, self, list(dim), keepdim)


@lowering("aten.amin.default")
def amin(self, dim=(), keepdim=False):
    return _reduced(_C.reduce_min, self, list(dim), keepdim)


@lowering("aten.any.default", "aten.any.dim")
def any_(self, dim=None, keepdim=False):
    return cast(_reduced(_C.reduce_max, _counted(self), dim, keepdim), torch.bool)


@lowering("aten.all.default", "aten.all.dim")
def all_(self, dim=None, keepdim=False):
    return cast(_reduced(_C.reduce_min, _counted(self), dim, keepdim), torch.bool)


def _counted(x):
    """Truth values as 0 and 1 in int32, which OneFlow can reduce."""
    return cast(cast(x, torch.bool), torch.int32)


@lowering("aten.var.correction")
def var(self, dim=None, *, correction=1, keepdim=False):
    dims = _dims(dim, self.ndim)
    count = math.prod(self.shape[d] for d in dims)
    correction = 1 if correction is None else correction
    if count - correction <= 0:
        raise Refused("no degree of freedom is left")
    centred = _C.sub(self, _C.reduce_mean(self, dims, True))
    total = _C.reduce_sum(_C.mul(centred, centred), dims, keepdim)
    return _C.div(total, float(count - correction))


@lowering("aten.argmax.default")
def argmax(self, dim=None, keepdim=False):
    if self.ndim == 0:
        raise Refused("a tensor without dimensions")
    if dim is None:
        if keepdim:
            raise Refused("keepdim over all dimensions")
        return _C.argmax(_C.reshape(self, [-1]), 0, False, torch_int64())
    return _C.argmax(self, dim % self.ndim, keepdim, torch_int64())


def torch_int64():
    """OneFlow's dtype of an index."""
    return flow.int64


@lowering("aten.cumsum.default")
def cumsum(self, dim, *, dtype=None):
    if dtype is None and not torch_dtype(self).is_floating_point:
        dtype = torch.int64
    return _C.cumsum(cast(self, dtype) if dtype else self, dim % self.ndim)


@lowering("aten.softmax.int", "aten._softmax.default")
def softmax(self, dim, dtype=None):
    x = cast(self, dtype) if isinstance(dtype, torch.dtype) else self
    return _C.softmax(floating(x), dim % x.ndim)


@lowering("aten.linalg_vector_norm.default")
def linalg_vector_norm(self, ord=2, dim=None, keepdim=False, *, dtype=None):
    if ord != 2:
        raise Refused(f"ord={ord}; only the 2-norm is lowered")
    x = cast(self, dtype) if dtype else self
    return _C.sqrt(_reduced(_C.reduce_sum, _C.mul(x, x), dim, keepdim))
