"""Linear layers whose second half gates the first, in one kernel, where the package quack-kernels is (flash-attn-4 brings it).

Elsewhere a product writes both halves and another kernel reads them. At 2048x1280x10240 in float16 on an H200 the product takes
78 microseconds and the gate some 20 more; quack's one kernel takes 76.
"""

import contextlib
import functools
import math

import torch
import torch.nn.functional as F

from ...passes.base import HALVES
from ..lowering import Lowered
from ..values import Ref
from . import choice, cublaslt, flash, light, quack
from .strides import aligned

_Maybe = torch.Tensor | None


def product(lowered: Lowered, node: torch.fx.Node, x: Ref, weight: Ref, bias: Ref | None, gate: str) -> Ref | None:
    """A step for ``a * act(b)`` of the halves of ``x @ weight.T + bias``; None where there is no kernel, or nothing to gain."""
    columns, k = weight.shape
    half = x.dtype in HALVES and all(r is None or r.dtype == x.dtype for r in (weight, bias))
    dense = x.like.is_contiguous() and weight.like.is_contiguous()
    large = 2.0 * math.prod(x.shape) * columns >= flash.LEAST
    if gate not in quack.ACTS or not (half and dense and large) or k % quack.STEP or columns % (2 * quack.STEP):
        return None
    if not quack.able(gate, lowered.device.torch):
        return None
    # As it is it would be put in another order in every layer; this is done beside the rest.
    wide = None if bias is None else lowered.step(node, _widen, (bias,), bias.shape, torch.float32, "triton widen")
    made = (*x.shape[:-1], columns // 2)
    return lowered.step(node, Ways(gate), (x, weight, bias, wide), made, x.dtype, "quack")


def _widen(out: torch.Tensor, x: torch.Tensor) -> None:
    light.finish(out, x, None, None, "none", act_first=False)


class Ways(choice.Ways):
    """A product of one step that is gated, by an activation."""

    # Its compiler is not for several threads.
    prepared_here = True

    def __init__(self, act: str) -> None:
        super().__init__()
        self.kind = act

    def prepare(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        """Compile what will be measured."""
        for number in range(len(quack.CONFIGS) if aligned(out, x, weight, wide) else 0):
            with contextlib.suppress(Exception):  # it is left out when they are measured
                self._by_quack(number, out, x, weight, bias, wide)

    def __call__(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        """Fill `out` (..., columns / 2) from x (..., k), weight (columns, k), bias (columns,) and the same bias in float32."""
        key = ("gated product", tuple(x.shape), tuple(weight.shape), self.kind, str(x.dtype), bias is None)
        self._compute(key, (out, x, weight, bias, wide), x.device, spare=1)

    def _ways(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> list[choice.Way]:
        ways: list[choice.Way] = []
        if aligned(out, x, weight, wide):
            ways = [(functools.partial(self._by_quack, number), "quack") for number in range(len(quack.CONFIGS))]
        return [*ways, (self._apart, "cublasLt, triton gated"), (self._in_torch, "cublas, triton gated")]

    def _by_quack(
        self, number: int, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe
    ) -> None:
        quack.multiply(number, self.kind, out.view(-1, out.shape[-1]), x.view(-1, x.shape[-1]), weight, wide)

    def _apart(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        """With both halves in memory of torch's: where this is faster they are small."""
        x = x.view(1, -1, x.shape[-1])
        halves = x.new_empty(*x.shape[:2], len(weight))
        cublaslt.Product(halves, x, weight, bias, None, "none")(0, halves, x, weight, None)
        light.gate(out, halves, self.kind)

    def _in_torch(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        light.gate(out, F.linear(x, weight, bias), self.kind)
