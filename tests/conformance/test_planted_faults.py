"""Faults that are put into OneFlow's side on purpose: the suite's report fails, and says where."""

import json

import pytest

from conformance.__main__ import main
from diffusers_oneflow import kernels, structure
from diffusers_oneflow.kernels import moves
from diffusers_oneflow.kernels.lowering import _TABLE


@pytest.fixture
def judge(tmp_path):
    """judge(case): its result, once the suite has run it and ended with the exit code that belongs to it."""

    def run(case: str) -> dict:
        out = tmp_path / "numbers.json"
        code = main(["--only", case, "--json", str(out)])
        found = json.loads(out.read_text())["results"][case]
        assert code == (0 if found["passed"] else 1)
        return found

    return run


def failing(result: dict) -> set[str]:
    """The components that failed; the report's sentences name each of them."""
    found = {c["path"] for c in result["components"] if not c["passed"]}
    for path in found:
        assert any(sentence.startswith(f"{path}: its ") for sentence in result["failures"])
    return found


def plant(monkeypatch, op: str, fault):
    """Let `fault` (the right lowering, *args) lower `op` in the kernel pack."""
    right, _ = kernels.find(op)
    assert right is not None
    monkeypatch.setitem(_TABLE, op, lambda *args, **kwargs: fault(right, *args, **kwargs))


def test_a_wrong_epsilon(judge, monkeypatch, capsys):
    """In group norm alone: the UNet and the VAE have it, the text encoder has not."""
    case = "StableDiffusionPipeline"
    assert judge(case)["passed"]
    capsys.readouterr()
    wrong = lambda right, x, groups, weight, bias, eps, *rest: right(x, groups, weight, bias, 10 * eps, *rest)  # noqa: E731
    plant(monkeypatch, "oneflow.group_norm.default", wrong)
    assert failing(judge(case)) == {"unet", "vae.encoder", "vae.decoder"}
    said = capsys.readouterr().out
    assert "unet: its RMS error is" in said and f"failed: {case}" in said
    assert "worse than the baseline: passed in the baseline and fails now" in said


def test_a_wrong_epsilon_in_layer_norm(judge, monkeypatch):
    """CLIP has layer norm, T5 has RMS norm."""
    assert judge("model-clip_text")["passed"]
    wrong = lambda right, x, shape, weight=None, bias=None, *rest: right(x, shape, weight, bias, 1e-3)  # noqa: E731
    plant(monkeypatch, "aten.layer_norm.default", wrong)
    assert failing(judge("model-clip_text")) == {"clip_text"}
    assert judge("model-t5")["passed"]


def test_a_swapped_transpose(judge, monkeypatch):
    """The shape is right, the elements stay where they were: what T5 adds to its scores belongs to other heads."""
    assert judge("model-t5")["passed"]
    plant(monkeypatch, "aten.permute.default", lambda right, x, dims: moves.view(x, [x.shape[d] for d in dims]))
    assert failing(judge("model-t5")) == {"t5"}
    assert judge("model-vae_decoder")["failures"][0].startswith("vae_decoder: its RMS error is")


def test_a_dropped_attention_mask(judge, monkeypatch):
    """The text encoders mask what comes later; the transformer attends to everything."""
    case = "StableDiffusion3Pipeline"
    assert judge(case)["passed"]
    dropped = lambda right, q, k, v, mask, heads, causal, scale: right(q, k, v, None, heads, False, scale)  # noqa: E731
    plant(monkeypatch, "oneflow.attention.default", dropped)
    found = failing(judge(case))
    assert "text_encoder" in found and found <= {"text_encoder", "text_encoder_2", "text_encoder_3"}


def test_a_stale_lora(judge, monkeypatch):
    """Without the watch over the module's structure its graph keeps the weights that it was built with."""
    case = "StableDiffusionPipeline-lora-changed"
    assert judge(case)["passed"]
    monkeypatch.setattr(structure.Structure, "unchanged", lambda self: True)
    found = judge(case)
    assert failing(found) == {"unet"}
    assert any(sentence.startswith("the final image differs by") for sentence in found["failures"])
