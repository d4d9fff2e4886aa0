"""Linear layers and matrix products."""

from __future__ import annotations

import oneflow as flow

from .kernels import checked as _C
from .registry import lowering
from .shape import permute, reshaped


def product(a: flow.Tensor, b: flow.Tensor, transpose_b: bool = False, alpha: float = 1.0) -> flow.Tensor:
    """``alpha * a @ b`` (``b`` transposed in its last two dimensions on request); shapes (..., m, k) and (..., k, n)."""
    return _C.matmul(a, b, False, transpose_b, alpha)


@lowering("aten.linear.default")
def linear(input: flow.Tensor, weight: flow.Tensor, bias: flow.Tensor | None = None) -> flow.Tensor:
    # One 2-d product: OneFlow's broadcast_matmul is slower for more dimensions.
    rows = reshaped(input, [-1, input.shape[-1]])
    out = product(rows, weight, transpose_b=True)
    if bias is not None:
        out = _C.bias_add(out, bias, 1)
    return reshaped(out, [*input.shape[:-1], weight.shape[0]])


@lowering("aten.mm.default", "aten.bmm.default")
def mm(self: flow.Tensor, mat2: flow.Tensor) -> flow.Tensor:
    return product(self, mat2)


@lowering("aten.addmm.default")
def addmm(self: flow.Tensor, mat1: flow.Tensor, mat2: flow.Tensor, *, beta: float = 1, alpha: float = 1) -> flow.Tensor:
    return baddbmm(self, mat1, mat2, beta=beta, alpha=alpha)


@lowering("aten.baddbmm.default")
def baddbmm(self: flow.Tensor, batch1: flow.Tensor, batch2: flow.Tensor, *, beta: float = 1, alpha: float = 1) -> flow.Tensor:
    out = product(batch1, batch2, alpha=float(alpha))
    if beta == 0:
        return out
    return _C.add(out, self if beta == 1 else _C.mul(self, beta))


@lowering("aten.matmul.default")
def matmul(self: flow.Tensor, other: flow.Tensor) -> flow.Tensor:
    a = reshaped(self, [1, -1]) if self.ndim == 1 else self
    b = reshaped(other, [-1, 1]) if other.ndim == 1 else other
    if b.ndim == 2 and a.ndim > 2:
        rows = product(reshaped(a, [-1, a.shape[-1]]), b)
        out = reshaped(rows, [*a.shape[:-1], b.shape[-1]])
    else:
        out = product(a, b)
    shape = list(out.shape)
    if other.ndim == 1:
        shape.pop(-1)
    if self.ndim == 1:
        shape.pop(-1 if other.ndim == 1 else -2)
    return reshaped(out, shape)


@lowering("aten.mT.default")
def matrix_transpose(self: flow.Tensor) -> flow.Tensor:
    dims = list(range(self.ndim))
    dims[-2], dims[-1] = dims[-1], dims[-2]
    return permute(self, dims)
