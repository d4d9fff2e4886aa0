"""The suite judges whatever the entry-point group `diffusers.backends` offers: two tiny ones, right and wrong."""

import importlib
import json
import sys

import pytest

from conformance.__main__ import UNUSABLE, main

# Runs models in torch, one of them with a fault if it is told to; keeps no report of what ran where.
SOURCE = """
import torch

SCALE = 1.0


def _models(pipe):
    return [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]


def _scaled(module, args, output):
    if isinstance(output, torch.Tensor):
        return output * SCALE
    if isinstance(output, (list, tuple)):
        return type(output)(_scaled(module, args, o) for o in output)
    return type(output)(**{k: v * SCALE if isinstance(v, torch.Tensor) else v for k, v in output.items()})


class Tiny:
    hooks = []

    def attach(self, pipe, config=None):
        for module in _models(pipe):
            if type(module).__name__ in ("UNet2DConditionModel", "T5EncoderModel", "Calls"):
                self.hooks.append(module.register_forward_hook(_scaled))

    def detach(self, pipe):
        while self.hooks:
            self.hooks.pop().remove()


class Honest(Tiny):
    def fallbacks(self, pipe):
        return {name: "it has no kernels" for name in pipe.components if name == "text_encoder"}


class Missing(Tiny):
    def attach(self, pipe, config=None):
        raise RuntimeError("no such device")


tiny, honest, missing = Tiny(), Honest(), Missing()
"""


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """The module of three backends that are installed next to oneflow: tiny, honest and missing."""
    (tmp_path / "tiny_backend.py").write_text(SOURCE)
    info = tmp_path / "tiny_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny_backend\nVersion: 1.0\n")
    names = ("tiny", "honest", "missing")
    points = "".join(f"{name} = tiny_backend:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[diffusers.backends]\n{points}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("tiny_backend")
    del sys.modules["tiny_backend"]


def run(tmp_path, name: str, *arguments: str) -> tuple[int, dict]:
    out = tmp_path / "numbers.json"
    code = main(["--backend", name, "--json", str(out), *arguments])
    return code, json.loads(out.read_text())["results"]


CASES = ("--only", "StableDiffusionPipeline", "--only", "t5", "--only", "aten.silu.default")


def test_a_backend_that_is_right_passes(backend, tmp_path):
    code, found = run(tmp_path, "tiny", *CASES)
    assert code == 0
    assert set(found) == {"StableDiffusionPipeline", "t5", "aten.silu.default"}
    for result in found.values():
        assert result["passed"] and result["components"]
        assert all(c["ours"] == c["torch"] for c in result["components"])


def test_a_backend_with_a_fault_fails_at_its_place(backend, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backend, "SCALE", 1.001)
    code, found = run(tmp_path, "tiny", *CASES)
    assert code == 1
    assert [c["path"] for c in found["StableDiffusionPipeline"]["components"] if not c["passed"]] == ["unet"]
    assert found["aten.silu.default"]["failures"][0].startswith("aten.silu.default tiny float")
    assert not found["t5"]["passed"]
    assert "tiny RMS" in capsys.readouterr().out


def test_what_it_says_of_fallbacks_is_reported(backend, tmp_path):
    """And compared with its own baseline."""
    kept, only = tmp_path / "baseline.json", ("--only", "StableDiffusionPipeline", "--baseline")
    assert run(tmp_path, "tiny", *only, str(kept), "--update-baseline")[0] == 0
    code, found = run(tmp_path, "honest", *only, str(kept))
    assert found["StableDiffusionPipeline"]["passed"]
    assert found["StableDiffusionPipeline"]["fallbacks"] == {"text_encoder": "it has no kernels"}
    assert code == 1


def test_a_backend_that_cannot_run_has_an_exit_code_of_its_own(backend, capsys):
    assert main(["--backend", "missing", *CASES]) == UNUSABLE
    assert "the backend missing cannot run here: no such device" in capsys.readouterr().out


def test_an_unknown_backend_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--backend", "onnx", *CASES])
    assert ended.value.code == 2
    assert "unknown backend 'onnx'" in capsys.readouterr().err
