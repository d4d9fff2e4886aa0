"""Cases of images made larger, for Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_oneflow.replay.cuda import upsampling
from diffusers_oneflow.replay.values import refs

from .test_graph import error, graph_of
from .triton_cases import filled, numbers, run
from .triton_graphs import Interpreted, check


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factors", [(2, 2), (1, 3), (4, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 2100), (2, 40, 33, 3)])
def test_pixels_are_repeated(shape, factors, dtype):
    x = numbers(*shape, dtype=dtype)
    n, h, w, c = shape
    size = h * factors[0], w * factors[1]
    made = run(upsampling.upsample_nearest2d, (n, *size, c), dtype, x, size)
    assert torch.equal(made, F.interpolate(x.movedim(-1, 1), size).movedim(1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("oc, c", [(1, 1), (5, 33), (64, 40)])
@pytest.mark.parametrize("last", [True, False])
def test_folded_filters_do_to_the_small_image_what_the_filters_do_to_the_large_one(oc, c, last, dtype):
    weight, x = numbers(oc, c, 3, 3, dtype=dtype), numbers(2, c, 5, 6, dtype=torch.float64)
    given = weight.contiguous(memory_format=torch.channels_last) if last else weight
    folded = filled(upsampling.fold, (c, 4, 4, oc), dtype, given).permute(0, 3, 1, 2).double()
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight.double(), padding=1)
    # Added up in float32, and rounded once.
    bound = F.conv2d(F.interpolate(x.abs(), scale_factor=2.0), weight.double().abs(), padding=1)
    bound *= torch.finfo(dtype).eps / 2 + torch.finfo(torch.float32).eps
    assert ((F.conv_transpose2d(x, folded, stride=2, padding=1) - expected).abs() <= bound).all()


class Upsampler(nn.Module):
    """As those of diffusers, and what reads its result."""

    def __init__(self, **how):
        super().__init__()
        self.conv, self.end = nn.Conv2d(4, 6, **{"kernel_size": 3, "padding": 1, **how}), nn.Conv2d(6, 3, 1)
        self.begin = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        h = F.interpolate(self.begin(x), scale_factor=2.0)
        return (self.end(self.conv(h)),)


def kernels_of(graph):
    return [step.kernel for step in graph.steps]


class Ends(Upsampler):
    """What comes after the convolution is done in its step."""

    def __init__(self, act, residual):
        super().__init__()
        self.act, self.residual, self.side = act, residual, nn.Conv2d(3, 6, 1)

    def forward(self, x):
        h = self.conv(F.interpolate(self.begin(x), scale_factor=2.0))
        h = h + self.side(F.interpolate(x, scale_factor=2.0)) if self.residual else h
        return (F.silu(h) if self.act else h,)


# Not bfloat16: on the CPU torch rounds the sums of a transposed convolution on the way.
@pytest.mark.parametrize("dtype", [torch.float16])
@pytest.mark.parametrize(
    ("module", "shape"),
    [(Upsampler(), (1, 3, 32, 33)), (Upsampler(), (4, 3, 16, 16)), (Ends(True, False), (1, 3, 32, 32)),
     (Ends(False, True), (1, 3, 32, 32)), (Ends(True, True), (1, 3, 32, 32))],
)  # fmt: skip
def test_a_convolution_reads_the_small_image(module, shape, dtype):
    torch.manual_seed(0)
    module, x = copy.deepcopy(module).eval().to(dtype), torch.randn(shape, dtype=dtype)
    graph = graph_of(module, x, device=Interpreted())
    (folded,) = [step for step in graph.steps if step.kernel == "triton filters"]
    (reader,) = [step for step in graph.steps if any(ref.source is folded for ref in refs(step.args))]
    assert reader.run.kind[3] and reader.args[0].shape[1:3] == shape[2:]
    assert (reader.args[3] is not None) == getattr(module, "residual", False)
    assert (reader.run.kind[2] == "silu") == getattr(module, "act", False)
    with torch.no_grad():
        stock, expected = module(x)[0], module.double()(x.double())[0]
    # Filters, sums and results are rounded, where torch rounds results alone.
    assert error(graph([x])[0], expected) <= 3**0.5 * 1.1 * error(stock, expected)


def test_filters_that_are_written_to_are_folded_anew():
    torch.manual_seed(0)
    module, x = Upsampler().eval().half(), torch.randn(1, 3, 32, 32).half()
    graph = graph_of(module, x, device=Interpreted())
    graph([x])
    with torch.no_grad():
        module.conv.weight.data.mul_(-0.5)
        expected = module.double()(x.double())[0]
    assert error(graph([x])[0], expected) < 2e-3


class Twice(Upsampler):
    """The large image is read again."""

    def forward(self, x):
        h = F.interpolate(self.begin(x), scale_factor=2.0)
        return (self.conv(h), h + 1)


class Thrice(Upsampler):
    """An image three times as large."""

    def forward(self, x):
        return (self.conv(F.interpolate(self.begin(x), scale_factor=3.0)),)


@pytest.mark.parametrize(
    "module, size",
    [
        pytest.param(Upsampler(), 31, id="few pixels"),
        pytest.param(Upsampler(kernel_size=1, padding=0), 32, id="no neighbours"),
        pytest.param(Upsampler(padding=0), 32, id="no border"),
        pytest.param(Upsampler(stride=2), 32, id="every second pixel"),
        pytest.param(Upsampler(dilation=2, padding=2), 32, id="other neighbours"),
        pytest.param(Upsampler(groups=2), 32, id="groups"),
        pytest.param(Twice(), 32, id="read twice"),
        pytest.param(Thrice(), 32, id="three times"),
    ],
)
def test_other_convolutions_read_the_large_image(module, size):
    x = torch.randn(1, 3, size, size).half()
    graph = graph_of(module.eval().half(), x, device=Interpreted())
    assert "triton upsample" in kernels_of(graph) and "triton filters" not in kernels_of(graph)
    check(graph, module, x)


def test_in_float32_they_read_the_large_image():
    module, x = Upsampler().eval(), torch.randn(1, 3, 32, 32)
    graph = graph_of(module, x, device=Interpreted())
    assert "triton upsample" in kernels_of(graph) and "triton filters" not in kernels_of(graph)
    check(graph, module, x)
