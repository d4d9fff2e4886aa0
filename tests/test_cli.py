"""The command line, as a user types it."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusers_oneflow import __version__
from diffusers_oneflow.cli import app


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *words: runner.invoke(app, list(map(str, words)))


@pytest.fixture
def tiny(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_version(run):
    assert run("--version").stdout.strip() == __version__


def test_generate_writes_an_image(run, tiny, tmp_path):
    out = tmp_path / "new" / "image.png"
    result = run("generate", "a red circle", "--model", tiny, "--steps", 1, "--size", "16x32", "--out", out)
    assert result.exit_code == 0, result.output
    assert Image.open(out).size == (16, 32)
    assert "1 steps on oneflow" in result.output


def test_one_seed_gives_one_image_on_both_backends(run, tiny, tmp_path):
    for name, backend, seed in (("a", "oneflow", 3), ("b", "torch", 3), ("c", "torch", 4)):
        done = run("generate", "x", "--model", tiny, "--steps", 1, "--size", 16, "--seed", seed, "--backend", backend,
                   "--out", tmp_path / f"{name}.png")  # fmt: skip
        assert done.exit_code == 0, done.output
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png"), np.int16) for name in "abc")
    assert np.abs(a - b).max() <= 1
    assert np.abs(b - c).max() > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "x", "--backend", "tpu"], "unknown backend 'tpu'; available: oneflow, torch"),
        (["generate", "x", "--size", "big"], "--size big is not of the form"),
        (["generate", "x", "--size", "12"], "divisible by 8"),
        (["generate", "x", "--model", "."], "it has no model_index.json"),
        (["generate", "x", "--out", "/proc/none/x.png"], "cannot be made"),
        (["generate", "x", "--out", "."], "is a folder"),
        (["generate", "x", "--out", "x.txt"], "no ending of an image format"),
        (["generate", "x", "--model", "./no-such"], "there is no folder ./no-such"),
        (["explain", "no/such/model"], "no/such/model could not be loaded"),
    ],
)
def test_mistakes_get_one_sentence_and_no_traceback(run, words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_broken_model_index_gets_one_sentence(run, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline", "unet": ["diffusers", "NoSuchModel"]}')
    result = run("parity", tmp_path)
    assert result.exit_code == 2
    assert "could not be loaded" in result.output


def test_doctor_finds_the_engine(run):
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = {f["name"]: f["value"] for f in json.loads(result.stdout)}
    assert found["OneFlow"] == "loads"
    assert found["oneflow"] == "0.9.0"
    assert "registered" in found["backend 'oneflow'"]
    assert "usable" in found["CPU"]
    assert found["kernel pack"].removeprefix("usable, ") in ("amx", "avx512bf16", "avx512", "avx2")


def test_doctor_says_what_is_wrong(run, monkeypatch):
    from diffusers_oneflow import engine

    monkeypatch.setattr(engine, "refusal", lambda: "this is Python 3.12: use a Python 3.10 environment")
    result = run("doctor")
    assert result.exit_code == 1
    assert "cannot run" in result.output


def test_explain_and_parity_of_a_folder(run, tiny):
    report = run("explain", tiny, "--steps", 1, "--size", 16, "--json")
    assert report.exit_code == 0, report.output
    parts = json.loads(report.stdout)
    assert parts["unet"]["graphs"][0]["ops"]["oneflow.conv2d.default"] > 5
    assert not any(part["fallbacks"] for part in parts.values())
    numbers = run("parity", tiny, "--steps", 1, "--size", 16, "--json")
    assert numbers.exit_code == 0, numbers.output
    assert json.loads(numbers.stdout)["passed"] is True


def test_the_table_of_explain_names_the_parts(run, tiny):
    text = run("explain", tiny, "--steps", 1, "--size", 16).output
    for part in ("text_encoder", "unet", "vae.decoder", "0 fallbacks", "capture", "oneflow.conv2d.default", "dfo_convolution"):
        assert part in text


def test_help_does_not_load_torch():
    import subprocess
    import sys

    code = "import sys; import diffusers_oneflow.cli; print('torch' in sys.modules, 'oneflow' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False"]
