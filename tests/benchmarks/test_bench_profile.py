import json

import pytest
import torch

import diffusers_oneflow
from benchmarks import plots, profile
from diffusers_oneflow.kernels import loader


@pytest.fixture
def found(unet):
    from benchmarks import models

    if loader.instruction_set() is None:
        pytest.skip("the kernel pack cannot be used here")
    args, kwargs = models.unet_inputs(unet, 8, tokens=5)
    diffusers_oneflow.compile(unet, diffusers_oneflow.OneFlowConfig(fallback="error"))
    with torch.no_grad():
        return profile.profile(lambda: unet(*args, **kwargs), unet, 3)


def test_every_kernel_is_measured(found):
    assert len(found["seconds"]) == len(found["rest"]) == 3
    assert all(0 < rest < seconds for rest, seconds in zip(found["rest"], found["seconds"]))
    assert sum(op["ms"] for op in found["ops"]) / 1000 < max(found["seconds"]) * 1.5
    kinds = {op["kernel"] for op in found["ops"]}
    assert {"dfo_convolution", "dfo_linear", "dfo_flash_attention", "dfo_group_norm"} <= kinds
    # 8x8, 4 -> 8 channels, 3x3, batch 2.
    (first,) = [op for op in found["ops"] if op["where"].startswith("conv_in,") and op["kernel"] == "dfo_convolution"]
    assert first["flops"] == 2 * 2 * 64 * 8 * 4 * 9
    heavy = [op for op in found["ops"] if op["kernel"].endswith(("convolution", "linear", "attention"))]
    assert all(op["flops"] for op in heavy)


def test_summary_table_and_plot(found, capsys, tmp_path):
    report = profile.summary(found)
    assert sum(row["count"] for row in report["kernels"]) == len(found["ops"])
    assert [row["ms"] for row in report["kernels"]] == sorted((row["ms"] for row in report["kernels"]), reverse=True)
    profile.show("tiny", report)
    assert "oneflow.conv2d" in capsys.readouterr().out
    plots.profile("tiny", report, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_rates():
    op = {"kernel": "dfo_linear", "op": "aten.linear.default", "where": "", "ms": 2.0, "bytes": 4_000_000, "flops": 6_000_000}
    view = {**op, "kernel": "dfo_view", "op": "aten.view.default", "ms": 0.0, "bytes": 0, "flops": None}
    report = profile.summary({"seconds": [0.01, 0.01], "rest": [0.006, 0.006], "ops": [op, op, view]})
    linear, other = report["kernels"]
    assert (linear["op"], linear["count"], linear["ms"], linear["share"]) == ("aten.linear", 2, 4.0, 0.4)
    assert (linear["gb_per_second"], linear["gflop_per_second"]) == (2.0, 3.0)
    assert (other["gb_per_second"], other["gflop_per_second"]) == (None, None)
    assert report["rest_ms"] == 6.0


def test_flops():
    conv = [torch.empty(2, 8, 8, 6), torch.empty(4, 3, 3, 3), None]  # of two groups
    assert profile.flops("oneflow.conv2d.default", conv, torch.empty(2, 4, 4, 4)) == 2 * 128 * 27
    linear = [torch.empty(2, 5, 6), torch.empty(8, 6)]
    assert profile.flops("oneflow.linear.default", linear, torch.empty(2, 5, 4)) == 2 * 10 * 48  # gated
    attention = [torch.empty(2, 9, 16), torch.empty(2, 5, 16), torch.empty(2, 5, 16)]
    assert profile.flops("oneflow.attention.default", attention, torch.empty(2, 9, 16)) == 4 * 2 * 9 * 5 * 16
    heads = [torch.empty(2, 4, 9, 4), torch.empty(2, 4, 5, 4), torch.empty(2, 4, 5, 4)]
    assert profile.flops("aten.scaled_dot_product_attention.default", heads, heads[0]) == 4 * 2 * 9 * 5 * 16
    assert profile.flops("aten.add.Tensor", [None, None], None) is None


def test_the_command(tmp_path, capsys):
    assert profile.main(["--case", "text", "--repeats", "2", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "profile-demo-text-16-float32-oneflow.json").read_text())
    assert written["call_ms"]["count"] == 2
    assert any(row["kernel"] == "dfo_linear" and row["gflop_per_second"] for row in written["kernels"])
    assert (tmp_path / "profile-demo-text-16-float32-oneflow.png").exists()
