"""The parity library tells right from wrong; the demo pipeline and its models pass."""

import warnings

import numpy as np
import pytest
import torch

from diffusers_oneflow import building, parity
from diffusers_oneflow.backend import OneFlowBackend
from diffusers_oneflow.errors import Unsupported


def test_error_is_relative_to_the_output():
    reference = torch.tensor([0.0, 3.0, -4.0], dtype=torch.float64)
    found = parity.error(torch.tensor([0.0, 3.0, -3.6]), reference)
    assert found.maximum == pytest.approx(0.1, rel=1e-6)
    assert found.rms == pytest.approx(0.4 / 5, rel=1e-6)


def test_every_output_is_held_to_torchs_own_error_in_it():
    exact = [torch.ones(4, dtype=torch.float64)] * 2
    coarse, fine = torch.full((4,), 1.001), torch.ones(4)
    assert parity.worst("x", [fine, fine], [coarse, fine], exact).passed
    assert parity.worst("x", [coarse, fine], [coarse, fine], exact).passed
    for single in ([coarse, fine], [fine, coarse]):
        found = parity.worst("x", single[::-1], single, exact)
        assert not found.passed and found.torch == parity.Error(0.0, 0.0) and found.ours.rms == pytest.approx(1e-3, rel=1e-3)


class Twice(torch.nn.Module):
    def forward(self, x):
        made = x * 3
        return made, [made]


def test_an_output_that_is_given_twice_is_compared():
    assert parity.component(Twice(), (torch.randn(4),), {}).passed


def test_images_of_another_number_are_refused(pipe):
    def draw_some(pipe):
        return np.zeros((2 if OneFlowBackend.is_attached(pipe) else 1, 8, 8, 3), np.uint8)

    with pytest.raises(ValueError, match="the backend of"):
        parity.pipeline(pipe, draw_some)


@pytest.mark.parametrize(("ours", "right"), [(torch.nan, False), (torch.inf, False), (1.0, True)])
def test_a_planted_nan_or_infinity_is_infinitely_far(ours, right):
    reference = torch.ones(3, dtype=torch.float64)
    found = parity.error(torch.tensor([1.0, ours, 1.0]), reference)
    assert (found.maximum == 0) == right
    assert (found.rms == float("inf")) != right


def test_nan_on_both_sides_is_equal():
    both = torch.tensor([torch.nan, 1.0, torch.inf])
    assert parity.error(both, both.double()) == parity.Error(0.0, 0.0)


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="number or in shape"):
        parity.errors([torch.ones(2)], [torch.ones(3, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("theirs", "ours", "passed"), [(1e-5, 1.4e-5, True), (1e-5, 1.6e-5, False), (1e-9, 9e-7, True), (1e-9, 2e-6, False)]
)
def test_the_bar_is_one_and_a_half_times_torch_with_a_floor(theirs, ours, passed):
    near = parity.Error(1e-8, 1e-8)
    assert parity.Component("x", parity.Error(theirs, 1e-8), parity.Error(ours, 1e-8)).passed == passed
    assert parity.Component("x", parity.Error(1e-8, theirs), parity.Error(1e-8, ours)).passed == passed
    assert parity.Component("x", near, near).passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_held_to_less(block, dtype):
    if dtype == torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("oneDNN has no float16 convolutions on this processor")
    found = parity.component(block.to(dtype), (torch.randn(1, 3, 8, 8, dtype=dtype),), {})
    assert found.passed and found.factor == parity.HALF_FACTOR
    assert found.torch.rms > 1e-4
    assert not parity.Component("x", found.torch, parity.Error(1.3 * found.torch.rms, 0.0), found.factor).passed


def test_a_module_is_left_as_it_was(block):
    before = dict(block.__dict__)
    found = parity.component(block, (torch.randn(1, 3, 8, 8),), {})
    assert found.passed
    assert 0 < found.torch.rms < 1e-5
    assert block.__dict__ == before
    assert next(block.parameters()).dtype == torch.float32


def test_a_wrong_lowering_fails(block, monkeypatch):
    from diffusers_oneflow import kernels

    op = "oneflow.group_norm.default"
    right, _ = kernels.find(op)
    wrong = lambda x, groups, weight, bias, eps, *rest: right(x, groups, weight, bias, 1e-3, *rest)  # noqa: E731
    monkeypatch.setitem(kernels.lowering._TABLE, op, wrong)
    assert not parity.component(block, (torch.randn(1, 3, 8, 8),), {}).passed


def test_what_cannot_run_is_said():
    class Sorting(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x)[1]

    with pytest.raises(Unsupported, match="linalg"):
        parity.component(Sorting(), (torch.randn(3, 3),), {})


def test_the_demo_pipeline_passes_as_a_whole(demo_pipe, monkeypatch):
    captured = []
    capture = building.capture
    monkeypatch.setattr(building, "capture", lambda *args: captured.append(args[0]) or capture(*args))

    def draw(pipe):
        noise = torch.Generator().manual_seed(0)
        images = pipe("a red circle", num_inference_steps=2, generator=noise, output_type="np").images
        return (images * 255).round().astype(np.uint8)

    report = parity.pipeline(demo_pipe, draw)
    assert {c.path for c in report.components} == {"text_encoder", "unet", "vae.encoder", "vae.decoder"}
    assert report.passed, report.as_dict()
    assert len(captured) == 4  # each component's graph was built once, for its own comparison and for the image
    assert not OneFlowBackend.is_attached(demo_pipe)


def test_a_component_that_runs_in_torch_fails_unless_it_is_expected_to(pipe, draw):
    """As it does with a hook, whose Python code has to run."""
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: None)

    def images(pipe):
        return (draw(pipe)[None] * 255).round().astype(np.uint8)

    report = parity.pipeline(pipe, images)
    assert report.unexpected == ("unet",) and all(c.passed for c in report.components) and not report.passed
    assert report.failures[0].startswith("unet ran in torch, which was not expected: conv_in (Conv2d) has forward hooks")
    report = parity.pipeline(pipe, images, {"unet": "forward hooks"})
    assert report.passed and set(report.fallbacks) == {"unet"}
    assert {c.path for c in report.components} == {"text_encoder", "vae.encoder", "vae.decoder"}
    with pytest.raises(ValueError, match="was expected to run in torch"):
        parity.pipeline(pipe, images, {"vae.decoder": "forward hooks"})


def test_a_change_of_the_attached_pipeline_is_what_is_compared(pipe, draw):
    def images(pipe):
        return (draw(pipe)[None] * 255).round().astype(np.uint8)

    def change(pipe):
        pipe.unet.conv_out.bias.data = torch.full_like(pipe.unet.conv_out.bias, 3.0)

    before = images(pipe)
    report = parity.pipeline(pipe, images, change=change)
    assert report.passed, report.failures
    by_torch, ours = report.drawn
    assert np.abs(by_torch.astype(int) - before).max() > 1 and np.abs(ours.astype(int) - by_torch).max() <= 1


def test_weights_that_are_computed_from_others_are_compared():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = torch.nn.utils.weight_norm(torch.nn.Linear(4, 3))
    assert not made.weight.is_leaf
    (call,) = parity._expected(made, (torch.randn(2, 4),), {}, "linear")
    assert call.exact[0].dtype == torch.float64 and 0 < parity.error(call.single[0], call.exact[0]).rms < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share, judged_again", [(1.3, True), (2.0, False)])
@pytest.mark.parametrize("others", [0.5, 1.4])
def test_what_fails_by_a_little_is_judged_by_other_calls(monkeypatch, share, judged_again, others, dtype):
    module, x = torch.nn.Linear(4, 4).to(dtype), torch.randn(2, 4, dtype=dtype)
    factor, asked = parity.FACTOR if dtype == torch.float32 else parity.HALF_FACTOR, []

    def row(excess):
        ours = factor * excess * 1e-3
        return parity.Component("linear", parity.Error(1e-3, 1e-3), parity.Error(ours, ours), factor)

    def alone(module, path, expected):
        asked.append([call.args[0] for call in expected])
        return row(others), ""

    monkeypatch.setattr(parity, "_alone", alone)
    found = parity._again(module, (x,), {}, row(share))
    assert found.passed == (judged_again and others < 1) and bool(asked) == judged_again
    for given in asked:
        assert len(given) == 32 and not any(torch.equal(x, other) for other in given)


def casting(pipe):
    """Draws with a VAE in float16, and leaves it in float32: a second run fails."""
    pipe.vae.post_quant_conv(torch.zeros(1, 4, 4, 4, dtype=torch.float16))
    pipe.vae.to(torch.float32)
    return np.zeros((1, 8, 8, 3), np.uint8)


def test_a_pipeline_that_torch_can_run_once_is_not_judged(pipe):
    pipe.vae.half()
    with pytest.raises(parity.TorchFails, match="twice: RuntimeError"):
        parity.pipeline(pipe, casting)


@pytest.mark.parametrize("again", [False, True])
def test_what_the_backend_breaks_is_not_torchs_failure(pipe, again):
    """Though torch cannot run it either afterwards; and where a run leaves a model otherwise, but the next one can begin so."""
    broken = []

    def draw(pipe):
        pipe.vae.to(torch.bfloat16 if again else torch.float32)
        if broken or OneFlowBackend.is_attached(pipe):
            broken.append("by the backend")
            raise RuntimeError("planted")
        return np.zeros((1, 8, 8, 3), np.uint8)

    with pytest.raises(RuntimeError, match="planted") as raised:
        parity.pipeline(pipe, draw)
    assert not isinstance(raised.value, parity.TorchFails) and len(broken) == 1
    assert not OneFlowBackend.is_attached(pipe)
