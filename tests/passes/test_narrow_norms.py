"""A norm between casts becomes one of the half type, where nobody needs its float32."""

import pytest
import torch
import torch.nn.functional as F

from diffusers_oneflow import parity
from tests.passes.test_passes import Function, rewritten

HALF = torch.bfloat16
X, W, B = torch.randn(2, 4, 8).to(HALF), torch.randn(8).to(HALF), torch.randn(8).to(HALF)


def layer_norm(x, w, b):
    return F.layer_norm(x.float(), (8,), w.float(), b.float(), 1e-6).to(x.dtype)


def group_norm(x, w, b):
    return F.silu(F.group_norm(x.mT.float(), 4, w.float(), b.float())).to(x.dtype)


def bare(x, w, b):
    return F.layer_norm(x.float(), (8,)).to(x.dtype)


@pytest.mark.parametrize("function, ops", [
    (layer_norm, {"aten.layer_norm.default": 1}), (bare, {"aten.layer_norm.default": 1}),
    (group_norm, {"oneflow.group_norm.default": 1, "aten.mT.default": 1}),
])  # fmt: skip
def test_casts_around_a_norm_go(function, ops):
    reports, left, program = rewritten(function, X, W, B, native=True)
    report = reports["NarrowNorms"]
    assert report.applied == 1
    assert left == ops
    assert all(o.meta["val"].dtype == HALF for o in program.outputs)


@pytest.mark.parametrize("function", [layer_norm, group_norm])
@pytest.mark.parametrize("dtype", [HALF, torch.float16])
def test_numbers_stay_as_near_to_float64(function, dtype):
    assert parity.component(Function(function).eval(), (X.to(dtype), W.to(dtype), B.to(dtype)), {}).passed


@pytest.mark.parametrize("function, reason", [
    (lambda x, w, b: (n := F.layer_norm(x.float(), (8,))).to(HALF) * n.sum(), "in float32 too"),
    (lambda x, w, b: F.layer_norm(x.float() * 2, (8,)).to(HALF), "is not torch.bfloat16"),
    (lambda x, w, b: F.layer_norm(x.float(), (8,), w.float().exp()).to(HALF), "is not torch.bfloat16"),
    (lambda x, w, b: F.layer_norm(x.float(), (8,)).to(torch.float16), "is not torch.float16"),
])  # fmt: skip
def test_where_it_must_stay(function, reason):
    reports, left, _ = rewritten(function, X, W, B, native=True)
    report = reports["NarrowNorms"]
    assert report.applied == 0
    assert reason in report.near_misses[0] and left["aten.layer_norm.default"] == 1


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_a_norm_keeps_its_eps(eps):
    function = lambda x, w, b: F.rms_norm(x.float(), (8,), w.float(), eps).to(x.dtype)  # noqa: E731
    # Where one of another dtype would show.
    assert parity.component(Function(function).eval(), (X * 1e-2, W, B), {}).passed


def test_an_activation_after_a_layer_norm_keeps_its_float32():
    reports, _, _ = rewritten(lambda x, w, b: F.silu(F.layer_norm(x.float(), (8,))).to(HALF), X, W, B, native=True)
    assert reports["NarrowNorms"].applied == 0
