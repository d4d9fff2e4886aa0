"""Concatenations of the parts of one tensor."""

import pytest
import torch
from torch import nn

from diffusers_oneflow.replay import parts

from .test_graph import graph_of, program_of


class Apart(nn.Module):
    """Takes a tensor apart and puts it together again, or nearly."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        x = x.softmax(-1)
        a, b = x[:, :3], x[:, 3:]
        if self.kind == "slices":
            return torch.cat([a, b], 1) * 2
        if self.kind == "split":
            return torch.cat(x.split([2, 1, 4], 1), 1) * 2
        if self.kind == "swapped":
            return torch.cat([b, a], 1) * 2
        if self.kind == "overlapping":
            return torch.cat([x[:, :4], x[:, 3:]], 1) * 2
        if self.kind == "other dimension":
            return torch.cat([x[:, :, :2], x[:, :, 2:]], 1) * 2
        if self.kind == "stepped":
            return torch.cat([x[:, :4:2], x[:, 4:], x[:, 1:3]], 1) * 2
        return torch.cat([x[:, :3], x[:, 3:6]], 1) * 2


@pytest.mark.parametrize(
    "kind, same",
    [
        ("slices", True), ("split", True), ("swapped", False), ("overlapping", False), ("other dimension", False),
        ("stepped", False), ("some left", False),
    ],
)  # fmt: skip
def test_parts_that_are_put_together_again(kind, same):
    module, x = Apart(kind).eval(), torch.randn(2, 7, 4)
    cats = [n for n in program_of(module, x).graph.nodes if "aten.cat" in str(n.target)]
    assert len(cats) == 1 and (parts.whole(cats[0]) is not None) == same
    graph = graph_of(module, x)
    assert any(s.op == "aten.cat.default" for s in graph.steps) != same
    torch.testing.assert_close(graph([x])[0], module(x))
