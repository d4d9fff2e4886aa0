"""Cases of group norms that join channels, for Triton's interpreter (TRITON_INTERPRET=1), run by test_triton.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_oneflow.replay.cuda import norms

from .test_graph import graph_of
from .triton_cases import DTYPES, close, filled, numbers
from .triton_graphs import Interpreted, check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiles", [norms.Tiles(8, 1, 35, 64), norms.Tiles(4, 4, 11, 2), norms.Tiles(8, 3, 12, 16)])
@pytest.mark.parametrize("groups, first, channels", [(2, 8, 12), (3, 16, 30), (4, 8, 32)])
def test_channels_are_joined_by_their_norm(groups, first, channels, tiles, dtype):
    parts = numbers(2, 5, 7, first, dtype=dtype) + 30, numbers(2, 5, 7, channels - first, dtype=dtype, seed=1) * 3
    w, b = numbers(channels, dtype=dtype, seed=2), numbers(channels, dtype=dtype, seed=3)
    norm = norms.GroupNorm(groups, 1e-5, "silu")
    joined, normed = filled(lambda out: norm.run(tiles, out[1], out[0], None, w, b, parts), (2, 2, 5, 7, channels), dtype)
    expected = torch.cat(parts, -1)
    assert torch.equal(joined, expected)
    wide = F.group_norm(expected.double().movedim(-1, 1), groups, w.double(), b.double(), 1e-5)
    close(normed, F.silu(wide).movedim(1, -1), dtype)


class Up(nn.Module):
    """A block of a UNet on its way up: what it joins is normed, convolved, and read again by the shortcut.

    Args:
        sizes: channels of what is joined.
        early: something reads what was joined before the norm does.
    """

    def __init__(self, *sizes, early=False, groups=4):
        super().__init__()
        self.begins = nn.ModuleList(nn.Conv2d(3, size, 1) for size in sizes)
        self.norm, self.conv = nn.GroupNorm(groups, sum(sizes)), nn.Conv2d(sum(sizes), 8, 3, padding=1)
        self.shortcut, self.early = nn.Conv2d(sum(sizes), 8, 1), early

    def forward(self, x):
        joined = torch.cat([begin(x) for begin in self.begins], 1)
        before = F.softmax(joined, 1).mean() if self.early else 0.0
        h = self.conv(F.silu(self.norm(joined)))
        return h + self.shortcut(joined) + before, joined[:, 2:5].mean((2, 3)), joined


def joins(monkeypatch, module, x, columns=8, alone=0):
    """The steps that join, and that norm, of its graph, which is checked."""
    monkeypatch.setattr(norms, "_ALONE", alone)
    monkeypatch.setattr(norms, "_COLUMNS", columns)
    graph = graph_of(module.eval(), x, device=Interpreted())
    check(graph, module, x)
    return [s.kernel for s in graph.steps if "cat" in s.op or "norm" in s.op]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("n", [1, 2])
def test_what_a_norm_joined_is_read_again(monkeypatch, n, dtype):
    torch.manual_seed(0)
    made = joins(monkeypatch, Up(16, 8).to(dtype), torch.randn(n, 3, 16, 5).to(dtype))
    assert made == ["triton group norm, joined"]


class Nested(nn.Module):
    """One tensor joined with itself, that with another, and both normed, the larger one twice."""

    def __init__(self):
        super().__init__()
        self.begin, self.end = nn.Conv2d(3, 8, 1), nn.Conv2d(40, 3, 1)
        self.first, self.second, self.third = nn.GroupNorm(4, 16), nn.GroupNorm(8, 40), nn.GroupNorm(4, 40)

    def forward(self, x):
        h = self.begin(x)
        twice = torch.cat([h, h], 1)
        three = torch.cat([torch.cat([twice, h], 1), self.first(twice)], 1)
        return self.end(self.second(three)) + self.end(self.third(three)), three


def test_what_is_joined_again(monkeypatch):
    torch.manual_seed(0)
    made = joins(monkeypatch, Nested(), torch.randn(2, 3, 16, 5))
    # What the first norm reads was read before.
    assert sorted(made) == ["cat", "cat", "triton group norm", "triton group norm", "triton group norm, joined"]


class Beside(nn.Module):
    """Two images side by side, normed as one."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.end = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x):
        return (self.end(self.norm(torch.cat([self.left(x), self.right(x)], 3))),)


class First(Up):
    """Of what is joined, one image is normed."""

    def __init__(self):
        super().__init__(16, 8)

    def forward(self, x):
        joined = torch.cat([begin(x) for begin in self.begins], 1)
        return self.conv(self.norm(joined[:1])), self.shortcut(joined)


@pytest.mark.parametrize("module, alone", [
    pytest.param(Up(16, 8, early=True), 0, id="what is joined is read before"),
    pytest.param(Up(12, 8), 0, id="a program would have channels of both"),
    pytest.param(Up(8, 8, 8), 0, id="of three"),
    pytest.param(Up(16, 8), 1 << 14, id="one launch"),
    pytest.param(Up(16, 7, groups=1), 0, id="the norm would not be aligned"),
    pytest.param(Beside(), 0, id="joined side by side"),
    pytest.param(First(), 0, id="of the first image alone"),
])  # fmt: skip
def test_others_join_before_their_norm(monkeypatch, module, alone):
    torch.manual_seed(0)
    made = joins(monkeypatch, module, torch.randn(2, 3, 16, 5), alone=alone)
    assert sorted(made) == ["cat", "triton group norm"]


class Apart(nn.Module):
    """What is joined are channels of one tensor, between others."""

    def __init__(self):
        super().__init__()
        self.begin, self.norm, self.end = nn.Conv2d(3, 20, 1), nn.GroupNorm(4, 24), nn.Conv2d(24, 3, 1)

    def forward(self, x):
        h = self.begin(x)
        return (self.end(self.norm(torch.cat([h[:, 2:18], h[:, 1:9]], 1))),)


def test_channels_that_lie_apart_are_joined_first(monkeypatch):
    torch.manual_seed(0)
    assert joins(monkeypatch, Apart(), torch.randn(2, 3, 6, 5)) == ["cat", "triton group norm"]
