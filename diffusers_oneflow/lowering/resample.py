"""Resizing of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import oneflow as flow

from .kernels import checked as _C
from .registry import Refused, lowering
from .shape import expand, reshaped


def _target(input: flow.Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> list[int]:
    sizes = input.shape[2:]
    if output_size is not None:
        return list(output_size)
    return [int(size * scale) for size, scale in zip(sizes, cast(Sequence[float], scale_factors))]


@lowering("aten.upsample_nearest2d.vec")
def upsample_nearest2d(
    input: flow.Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> flow.Tensor:
    n, c, h, w = input.shape
    height, width = _target(input, output_size, scale_factors)
    if height % h == 0 and width % w == 0:
        # Whole factors: each pixel is repeated; exact, and quicker than OneFlow's general kernel.
        x = reshaped(input, [n, c, h, 1, w, 1])
        return reshaped(expand(x, [n, c, h, height // h, w, width // w]), [n, c, height, width])
    if scale_factors is not None:
        raise Refused("a scale factor that is not whole; give size instead")
    return _C.upsample_nearest_2d(input, height / h, width / w, [height, width], "channels_first")


def _smooth(
    function: Callable[..., flow.Tensor],
    input: flow.Tensor,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> flow.Tensor:
    if scale_factors is not None and any(s != int(s) for s in scale_factors):
        raise Refused("a scale factor that is not whole; give size instead")
    height, width = _target(input, output_size, scale_factors)
    h, w = input.shape[2:]
    return function(input, height / h, width / w, align_corners, [height, width], "channels_first")


@lowering("aten.upsample_bilinear2d.vec")
def upsample_bilinear2d(
    input: flow.Tensor, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> flow.Tensor:
    return _smooth(_C.upsample_bilinear_2d, input, output_size, align_corners, scale_factors)


@lowering("aten.upsample_bicubic2d.vec")
def upsample_bicubic2d(
    input: flow.Tensor, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> flow.Tensor:
    return _smooth(_C.upsample_bicubic_2d, input, output_size, align_corners, scale_factors)
