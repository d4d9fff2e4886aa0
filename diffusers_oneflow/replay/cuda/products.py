"""Lowerings on CUDA of linear layers: by cuBLASLt, which adds a bias, a residual and some activations itself."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..lowering import Lowered
from ..values import Ref
from . import choice, cublaslt, merged
from .light import finish, fits, gated
from .table import on_cuda

# Multiplications below which the library's favourite is taken unmeasured: launching takes longest then. Of the others some round
# before they add the bias.
_SMALL = 1 << 22
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
    if (act, residual, gate) == ("none", None, "none") and (whole := merged.find(lowered, node, product)) is not None:
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
    x, weight = lowered.contiguous(node, x), lowered.contiguous(node, weight)
    residual = None if residual is None else lowered.contiguous(node, residual)
    how = Ways(math.prod(x.shape[:-1]), x.shape[-1], weight.shape[0], act, act_first)
    made = node.meta["val"].shape if shape is None else shape
    whole = made if gate == "none" else (*made[:-1], weight.shape[0])
    ref = lowered.step(node, how, (x, weight, bias, residual), whole, x.dtype, "cublasLt")
    return ref if gate == "none" else gated(lowered, node, ref, gate)


class Ways:
    """A product of one step, in the way that was fastest when it was first computed.

    Args:
        rows, k, columns: of ``x (rows, k) @ weight (columns, k).T``.
        act, act_first: what follows, as in `product`.
    """

    def __init__(self, rows: int, k: int, columns: int, act: str, act_first: bool) -> None:
        self._shape, self._act, self._act_first = (rows, k, columns), act, act_first
        self._chosen: Callable[..., None] | None = None
        self.name = ""

    def __call__(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        """Fill `out` (..., columns) from x (..., k)."""
        rows, k, _ = self._shape
        out, x = out.view(rows, -1), x.view(rows, k)
        residual = None if residual is None else residual.view(rows, -1)
        if self._chosen is None:
            ways = self._all(out, x, weight, bias, residual)
            key = ("product", self._shape, str(x.dtype), self._act, self._act_first, bias is None, residual is None)
            calls = [functools.partial(way, out, x, weight, bias, residual) for way, _ in ways]
            self._chosen, self.name = ways[choice.fastest(key, calls, x.device)]
        self._chosen(out, x, weight, bias, residual)

    def _all(
        self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe
    ) -> list[tuple[Callable[..., None], str]]:
        ways: list[tuple[Callable[..., None], str]] = []
        alike = residual is None or residual.dtype == x.dtype
        whole = alike and cublaslt.ends(self._act, residual is not None)
        own = (bias, residual, self._act) if whole else (None, None, "none")
        # Where rows begin anywhere the library rounds before it adds a bias.
        even = all(size * x.itemsize % 16 == 0 for size in self._shape[1:])
        if x.is_cuda and even and all(t is None or t.data_ptr() % 16 == 0 for t in (x, weight, bias, residual, out)):
            with contextlib.suppress(RuntimeError, OSError):  # a shape, or an installation, that it has nothing for
                library = cublaslt.Product(out, x, weight, *own)
                many = len(library.algorithms) if math.prod(self._shape) > _SMALL else 1
                for number in range(many):
                    ways.append((self._by_library(functools.partial(library, number), whole), "cublasLt"))
        ways.append((self._in_torch, "cublas"))
        return ways

    def _by_library(self, multiply: Callable[..., None], whole: bool) -> Callable[..., None]:
        """With the ends in its kernel, or in a pass after it."""

        def run(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
            multiply(out, x, weight, residual if whole else None)
            if not whole:
                self._finish(out, bias, residual)

        return run

    def _in_torch(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        if bias is not None and bias.dtype == x.dtype:
            torch.addmm(bias, x, weight.t(), out=out)
            bias = None
        else:
            torch.mm(x, weight.t(), out=out)
        self._finish(out, bias, residual)

    def _finish(self, out: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        if bias is not None or residual is not None or self._act != "none":
            finish(out, out, bias, residual, self._act, self._act_first)
