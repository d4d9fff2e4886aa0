"""Convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence

import oneflow as flow

from .kernels import checked as _C
from .padding import pad
from .registry import lowering
from .shape import cat, reshaped, slice_

_CONV = {1: _C.conv1d, 2: _C.conv2d, 3: _C.conv3d}
_AVERAGE = {2: _C.avg_pool2d, 3: _C.avg_pool3d}
_DECONV = {1: _C.deconv1d, 2: _C.deconv2d, 3: _C.deconv3d}


def _sizes(value: int | Sequence[int], n: int) -> list[int]:
    """An int or a list of one as a list of `n`."""
    value = [value] if isinstance(value, int) else list(value)
    return value * n if len(value) == 1 else value


def _conv(
    input: flow.Tensor,
    weight: flow.Tensor,
    bias: flow.Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> flow.Tensor:
    n = weight.ndim - 2
    unbatched = input.ndim == n + 1
    x = reshaped(input, [1, *input.shape]) if unbatched else input
    stride, dilation = _sizes(stride, n), _sizes(dilation, n)
    if padding == "same":
        # What is left over goes behind; OneFlow's own padding is the same on both sides.
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        x = pad(x, [amount for t in reversed(total) for amount in (0, t % 2)]) if any(t % 2 for t in total) else x
        padding = [t // 2 for t in total]
    padding = _sizes(0 if isinstance(padding, str) else padding, n)
    out = _CONV[n](x, weight, bias, stride, padding, dilation, groups, "channels_first")
    return reshaped(out, out.shape[1:]) if unbatched else out


@lowering("aten.conv1d.default", "aten.conv1d.padding")
def conv1d(
    input: flow.Tensor,
    weight: flow.Tensor,
    bias: flow.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> flow.Tensor:
    return _conv(input, weight, bias, stride, padding, dilation, groups)


@lowering("aten.conv2d.default", "aten.conv2d.padding")
def conv2d(
    input: flow.Tensor,
    weight: flow.Tensor,
    bias: flow.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> flow.Tensor:
    return _conv(input, weight, bias, stride, padding, dilation, groups)


@lowering("aten.conv3d.default", "aten.conv3d.padding")
def conv3d(
    input: flow.Tensor,
    weight: flow.Tensor,
    bias: flow.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> flow.Tensor:
    return _conv(input, weight, bias, stride, padding, dilation, groups)


@lowering("aten.convolution.default")
def convolution(
    input: flow.Tensor,
    weight: flow.Tensor,
    bias: flow.Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    transposed: bool,
    output_padding: int | Sequence[int],
    groups: int,
) -> flow.Tensor:
    if transposed:
        return _deconv(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(input, weight, bias, stride, padding, dilation, groups)


def _deconv(
    input: flow.Tensor,
    weight: flow.Tensor,
    bias: flow.Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
) -> flow.Tensor:
    n = weight.ndim - 2
    stride, padding, dilation = _sizes(stride, n), _sizes(padding, n), _sizes(dilation, n)
    unbatched = input.ndim == n + 1
    x = reshaped(input, [1, *input.shape]) if unbatched else input
    out = _DECONV[n](x, weight, bias, stride, padding, _sizes(output_padding, n), groups, dilation, "channels_first")
    return reshaped(out, out.shape[1:]) if unbatched else out


@lowering("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    input: flow.Tensor,
    weight: flow.Tensor,
    bias: flow.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> flow.Tensor:
    return _deconv(input, weight, bias, stride, padding, output_padding, groups, dilation)


@lowering("aten.avg_pool2d.default")
def avg_pool2d(
    self: flow.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> flow.Tensor:
    return _average(2, self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@lowering("aten.avg_pool3d.default")
def avg_pool3d(
    self: flow.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> flow.Tensor:
    return _average(3, self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _average(
    n: int,
    x: flow.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> flow.Tensor:
    kernel_size, unbatched = _sizes(kernel_size, n), x.ndim == n + 1
    out = _AVERAGE[n](
        reshaped(x, [1, *x.shape]) if unbatched else x, kernel_size, _sizes(stride, n) if stride else kernel_size,
        _sizes(padding, n), ceil_mode, count_include_pad, divisor_override or 0, "channels_first",
    )  # fmt: skip
    return reshaped(out, out.shape[1:]) if unbatched else out


@lowering("aten.max_pool2d.default")
def max_pool2d(
    self: flow.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> flow.Tensor:
    kernel_size = _sizes(kernel_size, 2)
    x = reshaped(self, [1, *self.shape]) if self.ndim == 3 else self
    out, _ = _C.max_pool2d(
        x, kernel_size, stride=_sizes(stride, 2) if stride else kernel_size, padding=_sizes(padding, 2),
        dilation=_sizes(dilation, 2), return_indices=True, ceil_mode=ceil_mode, data_format="channels_first",
    )  # fmt: skip
    return reshaped(out, out.shape[1:]) if self.ndim == 3 else out


@lowering("aten.adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(self: flow.Tensor, output_size: int | Sequence[int]) -> flow.Tensor:
    # The windows are rectangles, so their means are means along one side of means along the other.
    for dim, count in zip((self.ndim - 1, self.ndim - 2), reversed(_sizes(output_size, 2))):
        self = _means(self, dim, count)
    return self


def _means(x: flow.Tensor, dim: int, count: int) -> flow.Tensor:
    """The means of `count` windows along a dimension; they overlap where it is no multiple of `count`."""
    size = x.shape[dim]
    if size % count == 0:
        return _C.reduce_mean(reshaped(x, [*x.shape[:dim], count, size // count, *x.shape[dim + 1 :]]), [dim + 1], False)
    windows = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return cat([_C.reduce_mean(slice_(x, dim, start, end), [dim], True) for start, end in windows], dim)
