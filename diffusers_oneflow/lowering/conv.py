"""Convolutions and pooling."""


from .kernels import checked as _C
from .registry import Refused, lowering
from .shape import reshaped

_CONV = {1: _C.conv1d, 2: _C.conv2d, 3: _C.conv3d}
_DECONV = {1: _C.deconv1d, 2: _C.deconv2d, 3: _C.deconv3d}


def _sizes(value, n: int) -> list[int]:
    """An int or a list of one as a list of `n`."""
    value = [value] if isinstance(value, int) else list(value)
    return value * n if len(value) == 1 else value


def _same_padding(op, weight, stride, dilation, n):
    if any(s != 1 for s in _sizes(stride, n)):
        raise Refused("padding='same' with a stride")
    total = [d * (k - 1) for d, k in zip(_sizes(dilation, n), weight.shape[2:])]
    if any(t % 2 for t in total):
        raise Refused("padding='same' with an even kernel")
    return [t // 2 for t in total]


def _conv(op, input, weight, bias, stride, padding, dilation, groups):
    n = weight.ndim - 2
    if padding == "same":
        padding = _same_padding(op, weight, stride, dilation, n)
    elif padding == "valid":
        padding = 0
    stride, padding, dilation = _sizes(stride, n), _sizes(padding, n), _sizes(dilation, n)
    unbatched = input.ndim == n + 1
    x = reshaped(input, [1, *input.shape]) if unbatched else input
    out = _CONV[n](x, weight, bias, stride, padding, dilation, groups, "channels_first")
    return reshaped(out, out.shape[1:]) if unbatched else out


@lowering("aten.conv1d.default", "aten.conv1d.padding")
def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _conv("aten.conv1d", input, weight, bias, stride, padding, dilation, groups)


@lowering("aten.conv2d.default", "aten.conv2d.padding")
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _conv("aten.conv2d", input, weight, bias, stride, padding, dilation, groups)


@lowering("aten.conv3d.default", "aten.conv3d.padding")
def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _conv("aten.conv3d", input, weight, bias, stride, padding, dilation, groups)


@lowering("aten.convolution.default")
def convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed:
        return _deconv(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv("aten.convolution.default", input, weight, bias, stride, padding, dilation, groups)


def _deconv(input, weight, bias, stride, padding, output_padding, groups, dilation):
    n = weight.ndim - 2
    if input.ndim != n + 2:
        raise Refused("an input without a batch dimension")
    stride, padding, dilation = _sizes(stride, n), _sizes(padding, n), _sizes(dilation, n)
    output_padding = _sizes(output_padding, n)
    if groups != 1:
        raise Refused(f"groups={groups}")
    return _DECONV[n](
        input, weight, bias, weight.shape[1], padding, "channels_first", list(weight.shape[2:]), output_padding,
        stride, dilation, groups,
    )  # fmt: skip


@lowering("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    return _deconv(input, weight, bias, stride, padding, output_padding, groups, dilation)


@lowering("aten.avg_pool2d.default")
def avg_pool2d(
    self, kernel_size, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    if self.ndim != 4:
        raise Refused("an input without a batch dimension")
    kernel_size = _sizes(kernel_size, 2)
    return _C.avg_pool2d(
        self, kernel_size, _sizes(stride, 2) if stride else kernel_size, _sizes(padding, 2), ceil_mode,
        count_include_pad, divisor_override or 0, "channels_first",
    )  # fmt: skip
