"""Lowerings on CUDA of images made larger by repeating pixels, and of convolutions that read such images.

A convolution with 3x3 filters that reads every pixel twice in both directions multiplies it by up to four numbers of a filter,
and adds up. Adding up those numbers first gives a transposed convolution of the small image, with stride 2 and filters of 4x4:
4 multiplications for 9, and nobody writes the large image.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ...capture import op_name
from ...passes.base import HALVES
from ..lowering import Lowered
from ..values import Ref
from . import kernels
from .moves import tiles
from .table import on_cuda

_OP = "oneflow.upsample_nearest2d.default"
# Side of what one program adds up, in channels.
_TILE = 32
# Pixels of the small images, all of a batch, from which filters are added up in every step: that moves 41 numbers for each pair
# of channels, and spares 40 operations for each pixel, of which a GPU does some 170 while it moves one byte.
_LEAST_PIXELS = 1024


@on_cuda(_OP)
def upsample_nearest2d(lowered: Lowered, node: torch.fx.Node, x: Ref, size: Sequence[int]) -> Any:
    n, h, w, c = x.shape
    if size[0] % h or size[1] % w:
        return lowered.in_torch(node, (x, size), {})
    factors = size[0] // h, size[1] // w
    x = lowered.contiguous(node, x)

    def run(out: torch.Tensor, x: torch.Tensor) -> None:
        rows = out.numel() // c
        grid, *tile = tiles(rows, c)
        kernels.repeat_kernel[grid](out, x, rows, c, size[1], *factors, *tile, num_warps=8)

    return lowered.step(node, run, (x,), (n, *size, c), x.dtype, "triton upsample")


def doubled(lowered: Lowered, node: torch.fx.Node, weight: Ref) -> tuple[Ref, Ref] | None:
    """The small image that a convolution reads doubled, where it pays, and the filters (c, oc, 4, 4) for that one.

    Args:
        node: the convolution, of stride, padding and dilation 1, in one group.
        weight: (oc, c, kh, kw).
    """
    large: Any = node.args[0]
    if op_name(large) != _OP or len(large.users) > 1 or weight.shape[2:] != (3, 3):
        return None
    small = lowered.value(large.args[0])
    n, h, w, c = small.shape
    # Of float32 torch's is the only transposed convolution, and takes memory for a second result.
    if tuple(large.meta["val"].shape) != (n, 2 * h, 2 * w, c) or n * h * w < _LEAST_PIXELS or small.dtype not in HALVES:
        return None
    folded = lowered.step(node, fold, (weight,), (c, 4, 4, weight.shape[0]), weight.dtype, "triton filters")
    return lowered.contiguous(node, small), folded.through(lambda t: t.permute(0, 3, 1, 2))


def fold(out: torch.Tensor, weight: torch.Tensor) -> None:
    """Fill `out` (c, 4, 4, oc) with what stride 2 and padding 1 take, from filters (oc, c, 3, 3) of padding 1."""
    channels, inputs = weight.shape[:2]
    weight = weight.contiguous(memory_format=torch.channels_last)
    grid = (-(-channels // _TILE), -(-inputs // _TILE), 4)
    kernels.fold_kernel[grid](out, weight, channels, inputs, _TILE, num_warps=4)
