"""Lowerings of convolutions and pooling."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from .harness import check, for_ops, refusal
from .strategies import FLOAT, tensors, weights

small = st.integers(1, 3)


@st.composite
def convolutions(draw, n, transposed=False):
    """Input, weight, bias and options of a convolution in `n` dimensions."""
    groups, dtype = draw(st.sampled_from([1, 1, 2])), draw(FLOAT)
    within, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel = [draw(small) for _ in range(n)]
    options = {
        "stride": [draw(small) for _ in range(n)], "padding": [draw(st.integers(0, 2)) for _ in range(n)],
        "dilation": [draw(st.integers(1, 2)) for _ in range(n)], "groups": groups,
    }  # fmt: skip
    shape = [draw(small), within, *(draw(st.integers(5, 7)) for _ in range(n))]
    if transposed:
        options["output_padding"] = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(options["stride"], options["dilation"])]
        kernel = [k + 3 for k in kernel]  # larger than twice the padding
    x = draw(tensors(shape, dtype))
    weight = draw(weights([within, out // groups, *kernel] if transposed else [out, within // groups, *kernel], dtype))
    return x if draw(st.integers(0, 3)) else x[0], weight, draw(weights([out], dtype)) if draw(st.booleans()) else None, options


@for_ops("conv1d", "conv2d", "conv3d")
@given(data=st.data())
def test_convolution(op, data):
    x, weight, bias, o = data.draw(convolutions(int(op[len("aten.conv")])))
    check(op, x, weight, bias, o["stride"], o["padding"], o["dilation"], o["groups"])
    check(op, x, weight, groups=o["groups"])


@for_ops("conv1d.padding", "conv2d.padding", "conv3d.padding")
@given(data=st.data(), mode=st.sampled_from(["same", "valid"]))
def test_named_padding(op, data, mode):
    x, weight, bias, o = data.draw(convolutions(int(op[len("aten.conv")])))
    stride = [1] * len(o["stride"]) if mode == "same" else o["stride"]
    check(op, x, weight, bias, stride, mode, o["dilation"], o["groups"])


@for_ops("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
@given(data=st.data())
def test_transposed_convolution(op, data):
    x, weight, bias, o = data.draw(convolutions(int(op[len("aten.conv_transpose")]), transposed=True))
    check(op, x, weight, bias, o["stride"], o["padding"], o["output_padding"], o["groups"], o["dilation"])


@for_ops("convolution")
@given(data=st.data(), n=st.integers(1, 3), transposed=st.booleans())
def test_convolution_of_any_kind(op, data, n, transposed):
    x, weight, bias, o = data.draw(convolutions(n, transposed))
    x = x if x.ndim == n + 2 else x[None]
    output_padding = o.get("output_padding", [0] * n)
    check(op, x, weight, bias, o["stride"], o["padding"], o["dilation"], transposed, output_padding, o["groups"])


@for_ops("conv2d")
def test_many_channels(op):
    check(op, torch.randn(1, 96, 8, 8), torch.randn(32, 96, 3, 3), torch.randn(32), [1, 1], [1, 1])
    check(op, torch.randn(2, 64, 4, 4).to(memory_format=torch.channels_last), torch.randn(8, 64, 1, 1))
    check(op, torch.randn(1, 16, 8, 8), torch.randn(16, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 16)


@for_ops("avg_pool2d")
@given(x=tensors([2, 3, 7, 8], FLOAT), kernel=st.sampled_from([[2], [2, 2], [3, 2]]), stride=st.sampled_from([[], [1], [2, 3]]),
       padding=st.integers(0, 1), ceil=st.booleans(), include=st.booleans(), divisor=st.sampled_from([None, 3]))  # fmt: skip
def test_average_pooling(op, x, kernel, stride, padding, ceil, include, divisor):
    check(op, x, kernel, stride, padding, ceil, include, divisor)
    check(op, x[0], kernel)


@for_ops("avg_pool3d")
@given(x=tensors([2, 3, 5, 7, 8], FLOAT), kernel=st.sampled_from([[2], [2, 3, 2], [3, 2, 1]]),
       stride=st.sampled_from([[], [1], [2, 3, 1]]), padding=st.integers(0, 1), ceil=st.booleans(), include=st.booleans(),
       divisor=st.sampled_from([None, 3]))  # fmt: skip
def test_average_pooling_of_videos(op, x, kernel, stride, padding, ceil, include, divisor):
    padding = min(padding, *(k // 2 for k in kernel))
    check(op, x, kernel, stride, padding, ceil, include, divisor)
    check(op, x[0], kernel)


@for_ops("max_pool2d")
@given(x=tensors([2, 3, 7, 8], FLOAT), kernel=st.sampled_from([[2], [2, 2], [3, 2]]), stride=st.sampled_from([[], [1], [2, 3]]),
       padding=st.integers(0, 1), dilation=st.integers(1, 2), ceil=st.booleans())  # fmt: skip
def test_max_pooling(op, x, kernel, stride, padding, dilation, ceil):
    check(op, x, kernel, stride, padding, dilation, ceil)
    check(op, x[0], kernel)


@for_ops("adaptive_avg_pool2d")
@given(x=tensors([2, 3, 7, 8], FLOAT), size=st.lists(st.integers(1, 9), min_size=2, max_size=2))
def test_adaptive_average_pooling(op, x, size):
    check(op, x, size)
    check(op, x[0], size)


def test_what_is_refused():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    assert "no CPU kernel" in refusal("aten.conv2d.default", x.half(), weight.half())
    assert "no CPU kernel" in refusal("aten.conv2d.default", x.long(), weight.long())
