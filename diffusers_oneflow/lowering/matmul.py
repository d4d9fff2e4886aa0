"""Linear layers and matrix products."""

from .kernels import checked as _C
from .registry import lowering
from .shape import permute, reshaped


def product(a, b, transpose_b=False, alpha=1.0):
    """``alpha * a @ b`` (``b`` transposed in its last two dimensions on request); shapes (..., m, k) and (..., k, n)."""
    return _C.matmul(a, b, False, transpose_b, alpha)


@lowering("aten.linear.default")
def linear(input, weight, bias=None):
    # One 2-d product: OneFlow's broadcast_matmul is slower for more dimensions.
    rows = reshaped(input, [-1, input.shape[-1]])
    out = product(rows, weight, transpose_b=True)
    if bias is not None:
        out = _C.bias_add(out, bias, 1)
    return reshaped(out, [*input.shape[:-1], weight.shape[0]])


@lowering("aten.mm.default", "aten.bmm.default")
def mm(self, mat2):
    return product(self, mat2)


@lowering("aten.addmm.default")
def addmm(self, mat1, mat2, *, beta=1, alpha=1):
    return baddbmm(self, mat1, mat2, beta=beta, alpha=alpha)


@lowering("aten.baddbmm.default")
def baddbmm(self, batch1, batch2, *, beta=1, alpha=1):
    out = product(batch1, batch2, alpha=float(alpha))
    if beta == 0:
        return out
    return _C.add(out, self if beta == 1 else _C.mul(self, beta))


@lowering("aten.matmul.default")
def matmul(self, other):
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
def matrix_transpose(self):
    dims = list(range(self.ndim))
    dims[-2], dims[-1] = dims[-1], dims[-2]
    return permute(self, dims)
