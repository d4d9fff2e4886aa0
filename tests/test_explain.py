"""What explain says is what happened."""

import io

import pytest
import torch
from rich.console import Console

from diffusers_oneflow import FallbackWarning, compile, explain


def test_figures_of_a_module(block):
    compile(block)
    with torch.no_grad():
        for size in (8, 8, 16):
            block(torch.randn(1, 3, size, size))
    part = explain(block, show=False)["Sequential"]
    assert [g.calls for g in part.graphs] == [2, 1]
    assert part.graphs[0].inputs == ["(1, 3, 8, 8) float32"]
    assert part.graphs[0].ops["oneflow.conv2d.default"] == 2
    assert set(part.graphs[0].seconds) == {"capture", "passes", "lowering", "compiling"}
    assert all(s > 0 for s in part.graphs[0].seconds.values())
    assert part.weight_bytes == sum(p.nbytes for p in block.parameters())
    assert 0 < part.graphs[0].activation_bytes < part.graphs[0].unplanned_bytes
    assert part.graphs[1].activation_bytes > part.graphs[0].activation_bytes
    assert part.fallbacks == {}


def test_a_fallback_has_its_reason_and_count():
    class Values(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    module = compile(Values())
    with torch.no_grad(), pytest.warns(FallbackWarning, match="svd"):
        module(torch.eye(3))
        module(torch.eye(3))
    report = explain(module, show=False)
    assert report.fallbacks == 2
    (reason,) = report["Values"].fallbacks
    assert "svd" in reason and "test_explain.py" in reason


def test_the_table_shows_every_part(block):
    compile(block)
    with torch.no_grad():
        block(torch.randn(1, 3, 8, 8))
    text = io.StringIO()
    explain(block, show=False).print(Console(file=text, width=100))
    for word in ("Sequential", "(1, 3, 8, 8) float32", "oneflow.group_norm.default 1", "capture", "without reuse", "0 fallbacks"):
        assert word in text.getvalue()


def test_what_is_not_attached_is_said(block):
    with pytest.raises(ValueError, match="not attached to OneFlow"):
        explain(block)
