"""Lowering on CUDA of convolutions of images: by cuDNN, with a bias and a residual in its kernel where it can."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch

from ...passes.base import HALVES
from ..lowering import Lowered
from ..values import Ref
from . import choice, cudnn
from .light import finish, fits
from .products import product
from .strides import aligned
from .table import on_cuda
from .upsampling import doubled

_LAST = torch.channels_last
# So many of cuDNN's proposals are measured, by how many ends are in its kernel: two it has to compile, for a second each.
_MANY, _MANY_TRANSPOSED = (5, 4, 2), 5
_Maybe = torch.Tensor | None


@on_cuda("oneflow.conv2d.default")
def conv2d(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    weight: Ref,
    bias: Ref | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str = "none",
    residual: Ref | None = None,
) -> Any:
    made = node.meta["val"]
    filters = isinstance(weight.source, torch.Tensor) and len(weight.shape) == 4
    if not filters or not fits(x, weight, bias, residual) or x.dtype != weight.dtype:
        return lowered.in_torch(node, (x, weight, bias, stride, padding, dilation, groups, act, residual), {})
    residual = None if residual is None else lowered.contiguous(node, residual)
    oc, c, kh, kw = weight.shape
    plain = {*stride, *padding, *dilation, groups} == {1}
    if plain and (taken := doubled(lowered, node, weight)) is not None:
        twice = Ways((2, 2), (1, 1), (1, 1), 1, act, transposed=True)
        return lowered.step(node, twice, (*taken, bias, residual), made.shape, made.dtype, "cudnn convolution")
    x = lowered.contiguous(node, x)
    if (kh, kw, groups) == (1, 1, 1) and not any(padding) and set(stride) == {1}:
        flat = weight.through(lambda w: w.view(oc, c))
        return product(lowered, node, x, flat, bias, act, residual, "none", act_first=False)
    how = Ways(tuple(stride), tuple(padding), tuple(dilation), groups, act)
    return lowered.step(node, how, (x, weight, bias, residual), made.shape, made.dtype, "cudnn convolution")


@functools.cache
def _convolution(device: int, *args: Any) -> cudnn.Convolution:
    return cudnn.Convolution(cudnn.handle(device), *args)


class Ways(choice.Ways):
    """A convolution of one step, ``act(conv(x) + bias + residual)``.

    Args:
        transposed: as ``conv_transpose2d`` has it, of weights (c, oc, kh, kw) in one group.
    """

    def __init__(
        self, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int, act: str,
        transposed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._how, self._groups, self._act, self._transposed = (stride, padding, dilation), groups, act, transposed
        self.kind = (self._how, groups, act, transposed)

    def prepare(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        """Let the library compile what will be measured, and Triton what comes after it; any thread may.

        The plans are dropped: made again they take a moment, and each thread's handle of the library takes memory.
        """
        self._finish(out, bias, residual)
        weight = weight.contiguous(memory_format=_LAST)
        for ends in self._fused(out, x, weight, bias, residual):
            with contextlib.suppress(RuntimeError, OSError):  # a shape, or an installation, that it has nothing for
                own = cudnn.own_handle(x.device.index)
                made = cudnn.Convolution(own, *self._described(ends, out, x, weight, bias, residual))
                for number in range(self._count(made, ends, bias, residual)):
                    with contextlib.suppress(RuntimeError):  # it is left out when they are measured
                        made.plan(number)

    def __call__(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        """Fill `out` (n, oh, ow, oc) from x (n, h, w, c) and weight (oc, c / groups, kh, kw)."""
        # The parameter itself where it lies so (`layout`), else a copy in every call: one made once would miss writes.
        weight = weight.contiguous(memory_format=_LAST)
        key = ("conv2d", *map(tuple, (x.shape, weight.shape)), *self.kind, str(x.dtype), bias is None, residual is None)
        self._compute(key, (out, x, weight, bias, residual), x.device, spare=1 if self._transposed else 2)

    def _ways(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> list[choice.Way]:
        fused = self._fused(out, x, weight, bias, residual)
        ways = [way for ends in fused for way in self._planned(ends, out, x, weight, bias, residual)]
        in_place = [] if self._transposed else [(self._in_place, "cudnn by torch")]  # torch would copy it there
        return [*ways, *in_place, (self._in_torch, "torch")]

    def _fused(self, *tensors: _Maybe) -> tuple[bool, ...]:
        """Whether cuDNN's graphs are to have the bias and the residual inside: both ways, one, or none that it can do."""
        out, x, _, bias, residual = tensors
        assert out is not None and x is not None
        alike = all(t is None or t.dtype == x.dtype for t in tensors)
        if not (x.is_cuda and x.dtype in HALVES and alike and aligned(*tensors)):
            return ()
        return (False,) if self._transposed or (bias is None and residual is None) else (True, False)

    def _described(
        self, ends: bool, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe
    ) -> tuple[Any, ...]:
        """The arguments of `cudnn.Convolution`."""
        n, h, w, c = x.shape
        size = (out.shape[0], out.shape[3], *out.shape[1:3])
        more = (bias is not None and ends, residual is not None and ends)
        return ((n, c, h, w), tuple(weight.shape), size, x.dtype, x.device, *more, *self._how, self._transposed)

    def _count(self, made: cudnn.Convolution, ends: bool, bias: _Maybe, residual: _Maybe) -> int:
        """How many plans are measured."""
        inside = ends * (bias is not None) + ends * (residual is not None)
        return min(_MANY_TRANSPOSED if self._transposed else _MANY[inside], len(made.configs))

    def _planned(
        self, ends: bool, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe
    ) -> list[choice.Way]:
        """By cuDNN's graphs; `ends`: with the bias and the residual."""
        try:
            planned = _convolution(x.device.index, *self._described(ends, out, x, weight, bias, residual))
        except (RuntimeError, OSError):  # a shape, or an installation, that it has nothing for
            return []

        def run(number: int, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
            planned(number, x, weight, out, *(t for t in (bias, residual) if t is not None and ends))
            self._finish(out, *((None, None) if ends else (bias, residual)))

        name = "cudnn, with its ends" if ends else "cudnn"
        return [(functools.partial(run, i), name) for i in range(self._count(planned, ends, bias, residual))]

    def _in_place(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        stride, padding, dilation = self._how
        torch.ops.aten.cudnn_convolution.out(
            x.permute(0, 3, 1, 2), weight, padding, stride, dilation, self._groups, True, False, torch.backends.cudnn.allow_tf32,
            out=out.permute(0, 3, 1, 2),
        )  # fmt: skip
        self._finish(out, bias, residual)

    def _in_torch(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        stride, padding, dilation = self._how
        x = x.permute(0, 3, 1, 2)
        if self._transposed:
            made = torch.conv_transpose2d(x, weight, None, stride, padding, 0, self._groups, dilation)
        else:
            made = torch.conv2d(x, weight, None, stride, padding, dilation, self._groups)
        out.copy_(made.permute(0, 2, 3, 1))
        self._finish(out, bias, residual)

    def _finish(self, out: torch.Tensor, bias: _Maybe, residual: _Maybe) -> None:
        if bias is not None or residual is not None or self._act != "none":
            finish(out, out, bias, residual, self._act, False)
