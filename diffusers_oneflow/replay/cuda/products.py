"""Lowerings on CUDA of linear layers: by cuBLASLt, which adds a bias, a residual and some activations itself."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...capture import op_name
from ...passes.channels_last import arguments
from ..lowering import Lowered
from ..values import Ref, Step
from . import choice, cublaslt, gates, memory, merged, moves, quack
from .light import finish, fits, gated
from .strides import ALIGNED, AT_ONCE, aligned, collapsed
from .table import on_cuda

# Multiplications below which the library's favourite is taken: of the others some round before they add the bias.
_SMALL = 1 << 22
# Of what is joined: the sum is rounded after each of them.
_MOST_PARTS = 3
_Maybe = torch.Tensor | None


@on_cuda("oneflow.linear.default")
def linear(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    weight: Ref,
    bias: Ref | None = None,
    act: str = "none",
    residual: Ref | None = None,
    gate: str = "none",
) -> Any:
    if not fits(x, weight, bias, residual) or x.dtype != weight.dtype:
        return lowered.in_torch(node, (x, weight, bias, act, residual, gate), {})
    if (act, residual, gate) == merged.PLAIN and (whole := merged.find(lowered, node, product)) is not None:
        return whole
    if (act, gate) == ("none", "none") and (whole := _of_parts(lowered, node, weight, bias, residual)) is not None:
        return whole
    return product(lowered, node, x, weight, bias, act, residual, gate, act_first=True)


@on_cuda("aten.linear.default")
def plain_linear(lowered: Lowered, node: torch.fx.Node, x: Ref, weight: Ref, bias: Ref | None = None) -> Any:
    if not fits(x, weight, bias) or x.dtype != weight.dtype:
        return lowered.in_torch(node, (x, weight, bias), {})
    return product(lowered, node, x, weight, bias, "none", None, "none", act_first=True)


def product(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    weight: Ref,
    bias: Ref | None,
    act: str,
    residual: Ref | None,
    gate: str,
    act_first: bool,
    shape: Sequence[int] | None = None,
) -> Ref:
    """A step for ``act(x @ weight.T + bias) + residual``, or ``act(... + residual)``; then the gate.

    Args:
        shape: of the result, where it is not that of the node.
    """
    alone = (act, residual) == ("none", None) and gate != "none"
    if alone and (one := gates.product(lowered, node, x, weight, bias, gate)) is not None:
        return one
    x, weight = (ref if _matrices(ref.like) is not None else lowered.contiguous(node, ref) for ref in (x, weight))
    residual = None if residual is None else lowered.contiguous(node, residual)
    how = Ways(math.prod(x.shape[:-1]), x.shape[-1], weight.shape[0], act, act_first)
    made = node.meta["val"].shape if shape is None else shape
    whole = made if gate == "none" else (*made[:-1], weight.shape[0])
    ref = lowered.step(node, how, (x, weight, bias, residual), whole, x.dtype, "cublasLt")
    return ref if gate == "none" else gated(lowered, node, ref, gate)


def _of_parts(lowered: Lowered, node: torch.fx.Node, weight: Ref, bias: Ref | None, residual: Ref | None) -> Ref | None:
    """The product of a concatenation of columns, as a sum of products of its parts; None where something else is read.

    Flux joins attention and MLP so: 283 MB in each of 38 blocks that need not be moved.
    """
    joined: Any = node.args[0]
    if op_name(joined) != "aten.cat.default" or len(joined.users) > 1 or joined.kwargs:
        return None
    whole = lowered.value(joined)
    nodes, dim = arguments(joined, ("tensors", "dim"), (None, 0))
    read = [lowered.value(part) for part in nodes]
    if dim % len(whole.shape) != len(whole.shape) - 1 or any(r.dtype != whole.dtype for r in read):
        return None
    if not isinstance(whole.source, Step) or not isinstance(whole.source.run, moves.Cat):
        return None  # all parts of one tensor, in order: there is nothing to move
    columns, start = [], 0
    for part in read:
        columns.append(weight.through(lambda t, start=start, size=part.shape[-1]: t.narrow(1, start, size)))  # type: ignore[misc]
        start += part.shape[-1]
    if len(read) > _MOST_PARTS or any(_matrices(c.like) is None for c in columns):
        return None
    made = residual
    for number, (part, of_part) in enumerate(zip(read, columns), 1):
        ends = (bias if number == len(read) else None, "none", made, "none")
        made = product(lowered, node, part, of_part, *ends, act_first=True)
    return made


def _matrices(x: torch.Tensor) -> torch.Tensor | None:
    """`x` (..., k) as (n, rows, k) where it lies; None where its rows lie as no matrices of cuBLASLt do."""
    k = x.shape[-1]
    if x.is_contiguous():
        return x.view(1, math.prod(x.shape[:-1]), k)
    dims = collapsed(x.shape[:-1], x.stride()[:-1])
    if not 0 < len(dims) <= 2 or x.stride(-1) != 1:
        return None
    (n, jump), (rows, step) = [(1, 0)] * (2 - len(dims)) + dims
    if step < k or any(stride * x.itemsize % AT_ONCE for stride in (jump, step)):
        return None
    return x.as_strided((n, rows, k), (jump, step, 1))


def without_ends(lowered: Lowered, ref: Ref, columns: int) -> tuple[Ref | None, Ref] | None:
    """Take a bias and a residual from the product that makes `ref`, for whoever reads it, alone so far, and adds them there.

    A product that reads a residual takes longer than it takes to add it where the sum is read anyway: 25 for 16 microseconds at
    8192x640x640 on an H200.

    Args:
        columns: in rows of so many numbers it is read there; a bias has to be as long.
    """
    made = ref.source
    if not (isinstance(made, Step) and isinstance(made.run, Ways)) or not ref.like.is_contiguous():
        return None
    _, _, bias, residual = made.args
    if bias is not None and bias.shape.numel() != columns:
        return None
    if residual is None or not made.run.is_sum or ref.shape.numel() != made.like.numel() or made.like.nbytes % ALIGNED:
        return None
    if lowered.is_read(made):
        return None
    made.run, made.args = made.run.bare(), (*made.args[:2], None, None)
    return bias, residual


class Ways(choice.Ways):
    """A product of one step.

    Args:
        rows, k, columns: of ``x (rows, k) @ weight (columns, k).T``.
        act, act_first: what follows, as in `product`.
    """

    # Quack's compiler is not for several threads; the library has nothing to compile.
    prepared_here = True

    def __init__(self, rows: int, k: int, columns: int, act: str, act_first: bool) -> None:
        super().__init__()
        self._shape, self._act, self._act_first = (rows, k, columns), act, act_first
        self.kind = (act, act_first)

    def prepare(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        """Compile what will be measured."""
        matrices = _matrices(x)
        assert matrices is not None  # `product` has seen to it
        args = (out.view(*matrices.shape[:2], -1), matrices, weight, bias, residual)
        for way, _ in self._quacks(*args):
            way(*args)

    def __call__(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        """Fill `out` (..., columns) from x (..., k), whose rows may lie apart, as those of the weight."""
        matrices = _matrices(x)
        assert matrices is not None  # `product` has seen to it
        size = (*matrices.shape[:2], -1)
        residual = None if residual is None else residual.view(size)
        # What decides which algorithms the library proposes.
        aligned = [cublaslt.alignment(t) for t in (x, weight, out, residual) if t is not None]
        state = (torch.backends.cuda.matmul.allow_tf32, memory.size(), *aligned)
        lies = (matrices.shape[0], *matrices.stride()[:2], weight.stride(0))
        key = ("product", self._shape, lies, str(x.dtype), self._act, self._act_first, bias is None, residual is None, *state)
        # Torch's was never the fastest of SDXL's and Stable Diffusion's, and takes 32 MiB of scratch memory: it is spare.
        self._compute(key, (out.view(size), matrices, weight, bias, residual), x.device)

    @property
    def is_sum(self) -> bool:
        """Whether nothing comes after what is added."""
        return self._act == "none"

    def bare(self) -> "Ways":
        """The product alone."""
        return Ways(*self._shape, "none", True)

    def _ways(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> list[choice.Way]:
        ways: list[choice.Way] = []
        alike = residual is None or residual.dtype == x.dtype
        whole = alike and cublaslt.ends(self._act, residual is not None)
        own = (bias, residual, self._act) if whole else (None, None, "none")
        # Where rows begin anywhere the library rounds before it adds a bias.
        even = all(size * x.itemsize % AT_ONCE == 0 for size in self._shape[1:])
        if x.is_cuda and even and aligned(x, weight, bias, residual, out):
            with contextlib.suppress(RuntimeError, OSError):  # a shape, or an installation, that it has nothing for
                library = cublaslt.Product(out, x, weight, *own)
                many = 1 if math.prod(self._shape) <= _SMALL else len(library.algorithms)
                for number in range(many):
                    ways.append((self._by_library(functools.partial(library, number), whole), "cublasLt"))
        return [*ways[:1], *self._quacks(out, x, weight, bias, residual), *ways[1:], (self._in_torch, "cublas")]

    def _quacks(
        self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe
    ) -> list[choice.Way]:
        bare = bias is None and residual is None and self._act == "none"
        return [(_by_quack, "quack")] if bare and len(x) == 1 and quack.suits(out[0], x[0], weight) else []

    def _by_library(self, multiply: Callable[..., None], whole: bool) -> Callable[..., None]:
        """With the ends in its kernel, or in a pass after it."""

        def run(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
            multiply(out, x, weight, residual if whole else None)
            if not whole:
                self._finish(out, bias, residual)

        return run

    def _in_torch(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        if bias is not None and bias.dtype == x.dtype and len(x) == 1:
            torch.addmm(bias, x[0], weight.t(), out=out[0])
            bias = None
        else:
            torch.matmul(x, weight.t(), out=out)
        self._finish(out, bias, residual)

    def _finish(self, out: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        if bias is not None or residual is not None or self._act != "none":
            finish(out, out, bias, residual, self._act, self._act_first)


def _by_quack(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
    quack.multiply(0, "none", out[0], x[0], weight)
