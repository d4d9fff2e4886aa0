"""Lowering on CUDA of attention: the fastest of cuDNN's, flash attention and memory-efficient attention as torch has them, of
flash attention 4 where that is installed, and of Triton's where there are few keys."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend

from ..lowering import Lowered
from ..values import Ref
from . import choice, flash, short_attention
from .table import on_cuda

_aten = torch.ops.aten
# (q, k, v, bias, is_causal=, scale=) -> a tuple, the result first. Not by `sdpa_kernel`, torch's own way to choose: it changes
# settings of the whole process, which others see who compute meanwhile, and two threads leave them as none of them found them.
_DIRECT: dict[SDPBackend, Callable[..., Any]] = {
    SDPBackend.CUDNN_ATTENTION: functools.partial(_aten._scaled_dot_product_cudnn_attention.default, compute_log_sumexp=False),
    SDPBackend.FLASH_ATTENTION: lambda q, k, v, bias, **how: _aten._scaled_dot_product_flash_attention.default(q, k, v, **how),
    SDPBackend.EFFICIENT_ATTENTION: functools.partial(
        _aten._scaled_dot_product_efficient_attention.default, compute_log_sumexp=False
    ),
    SDPBackend.MATH: _aten._scaled_dot_product_attention_math.default,
}
_BACKENDS = tuple(_DIRECT)
# A causal mask begins at the first key here, where q and k differ in length too.
_FROM_THE_FIRST = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
# Rows of a bias begin at multiples of so many numbers, and so do heads in memory.
_ALIGNED = 8
_FITS = {
    SDPBackend.CUDNN_ATTENTION: can_use_cudnn_attention,
    SDPBackend.FLASH_ATTENTION: can_use_flash_attention,
    SDPBackend.EFFICIENT_ATTENTION: can_use_efficient_attention,
}
_Maybe = torch.Tensor | None


@on_cuda("oneflow.attention.default")
def attention(
    lowered: Lowered, node: torch.fx.Node, q: Ref, k: Ref, v: Ref, mask: Ref | None, heads: int, causal: bool, scale: float | None
) -> Any:
    made = node.meta["val"]
    how = Ways(heads, causal, scale)
    return lowered.step(node, how, (q, k, v, mask), made.shape, made.dtype, "scaled dot product attention", own=True)


def usable(given: SDPAParams, on_gpu: bool) -> list[SDPBackend]:
    """What torch says it can compute with, the likeliest first; the last one is for anything, and holds all weights."""
    q, k = given.query, given.key
    uneven = given.is_causal and q.shape[-2] != k.shape[-2]
    # Torch widens heads of other sizes for flash attention, outside of the kernel.
    left_out = {SDPBackend.FLASH_ATTENTION} if q.shape[-1] % _ALIGNED else set()
    able = [b for b in _BACKENDS if b not in left_out and (not uneven or b in _FROM_THE_FIRST)]
    return [b for b in able if b not in _FITS or (on_gpu and _FITS[b](given))]


def bias_of(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What kernels add to the products of `q` (n, heads, rows, width) and `k` (n, heads, keys, width).

    Args:
        mask: broadcasts to (n, heads, rows, keys); of booleans True lets a key in, of numbers they are added.
    """
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else mask
    bias = bias.expand(*bias.shape[:-1], k.shape[-2])
    if bias.stride(-1) != 1 or any(stride % _ALIGNED for stride in bias.stride()[:-1]):
        bias = F.pad(bias, (0, -bias.shape[-1] % _ALIGNED)).contiguous()[..., : k.shape[-2]]
    return bias.expand(*q.shape[:-1], k.shape[-2])


class Ways(choice.Ways):
    """The attention of one step."""

    fills = False
    # Torch has a handle of cuDNN, 8 MB, for each thread.
    prepared_here = True

    def __init__(self, heads: int, causal: bool, scale: float | None) -> None:
        super().__init__()
        self._heads, self._causal, self._scale = heads, causal, scale
        self.kind = (heads, causal, scale)

    def prepare(self, out: None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> None:
        """Let cuDNN, and flash attention 4, compile while others do in other threads: eight kinds take 2.8 s on an H200."""
        if mask is None:
            for run, _ in self._ways(q, k, v, mask)[: 1 + self._by_flash(q, k, mask)]:
                run(q, k, v, mask)

    def kernels(self, out: None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> None:
        """Launch those of Triton's."""
        for run, _ in self._shorts(q, k, v, mask):
            run(q, k, v, mask)

    def __call__(self, out: None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> torch.Tensor:
        """(n, rows, heads * width) from q, k, v of such shapes."""
        shapes = tuple((tuple(t.shape), t.stride(), str(t.dtype)) for t in (q, k, v, mask) if t is not None)
        made: torch.Tensor = self._compute(("attention", shapes, *self.kind), (q, k, v, mask), q.device)
        return made

    def _ways(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> list[choice.Way]:
        # What torch says it is not for may compute anything, or end the process.
        given = SDPAParams(self._by_head(q), self._by_head(k), self._by_head(v), mask, 0.0, self._causal, False)
        able = usable(given, q.is_cuda)
        found: list[choice.Way] = [(functools.partial(self._run, backend), backend.name.lower()) for backend in able]
        own: list[choice.Way] = [(self._flash, "flash_attention_4")] if self._by_flash(q, k, mask) else []
        own += self._shorts(q, k, v, mask)
        at = min(1, len(found) - 1)
        return [*found[:at], *own, *found[at:]]

    def _shorts(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> list[choice.Way]:
        if not short_attention.fits(q, k, v, mask, self._heads, self._causal):
            return []
        sizes = enumerate(short_attention.CONFIGS)
        # Named by its size, since what is kept on disk is the number of a way among ways of such names.
        return [(functools.partial(self._short, n), f"triton attention {rows}x{warps}") for n, (rows, warps) in sizes]

    def _short(self, number: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        short_attention.attention(number, out, q, k, v, self._heads, self._scale)
        return out

    def _by_flash(self, q: torch.Tensor, k: torch.Tensor, mask: _Maybe) -> bool:
        return flash.fits(self._by_head(q), self._by_head(k), mask, self._causal)

    def _flash(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> torch.Tensor:
        q, k, v = (self._by_head(x).transpose(1, 2) for x in (q, k, v))
        return flash.attention(q, k, v, self._causal, self._scale).flatten(2)

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x.unflatten(-1, (self._heads, -1)).transpose(1, 2)
        return made

    def _run(self, backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: _Maybe) -> torch.Tensor:
        q, k, v = map(self._by_head, (q, k, v))
        bias = None if mask is None else bias_of(mask, q, k)
        made: torch.Tensor = _DIRECT[backend](q, k, v, bias, is_causal=self._causal, scale=self._scale)[0]
        return made.transpose(1, 2).flatten(2).contiguous()
