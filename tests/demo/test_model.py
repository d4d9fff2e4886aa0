"""The embedded model: its files, its size, and that its numbers are those the scripts give."""

import filecmp
import json
import os
import subprocess
import sys

import pytest
import torch

from diffusers_oneflow import demo, demo_model
from diffusers_oneflow.demo.detector import judge
from diffusers_oneflow.demo.evaluate import make_captions, read_cases, table
from diffusers_oneflow.demo.model import build_parts, fold_latents
from diffusers_oneflow.demo.request import parse
from diffusers_oneflow.demo.scenes import HELD_OUT_PAIRS
from diffusers_oneflow.demo.tokenizer import write_tokenizer

MOST_BYTES = 25_000_000


def files(folder):
    return [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]


def test_the_model_is_small_and_safe():
    found = files(demo_model())
    assert sum(map(os.path.getsize, found)) <= MOST_BYTES
    assert {os.path.splitext(f)[1] for f in found} <= {".safetensors", ".json", ".txt", ".md"}


def test_the_tokenizer_is_the_one_that_the_script_writes(tmp_path):
    # In a process of its own, with another hash seed: the order must not depend on it.
    code = f"from diffusers_oneflow.demo.tokenizer import write_tokenizer as w; w({str(tmp_path / 'b')!r})"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "123"}, check=True)
    write_tokenizer(str(tmp_path / "a"))
    stored = os.path.join(demo_model(), "tokenizer")
    for name in os.listdir(stored):
        assert filecmp.cmp(os.path.join(stored, name), tmp_path / "a" / name, shallow=False)
        assert filecmp.cmp(os.path.join(stored, name), tmp_path / "b" / name, shallow=False)


def test_it_draws_what_is_asked(demo_pipe):
    caption = "a large red circle on a yellow background"
    image = demo_pipe(caption, num_inference_steps=25, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
    assert judge((image * 255).round().astype("uint8"), parse(caption)).objects


def test_the_held_out_captions_are_the_ones_that_the_script_makes():
    cases = read_cases()
    path = os.path.join(os.path.dirname(demo.__file__), "captions.txt")
    with open(path, encoding="utf-8") as f:
        assert f.read().splitlines() == make_captions()
    assert len({case.caption for case in cases}) == len(cases) == 200
    unseen = [case for case in cases if any((t.colour, t.shape) in HELD_OUT_PAIRS for t in parse(case.caption).things)]
    assert unseen == [case for case in cases if case.unseen]
    assert len(unseen) == 40


def test_the_table_counts_verdicts():
    from diffusers_oneflow.demo.detector import Verdict

    good, bad = Verdict(True, True, True, True, True), Verdict(True, False, True, True, False)
    rows = table(read_cases()[:4], [good, good, good, bad]).splitlines()
    assert rows[2].split("|")[2:6] == [" 4 ", " 100.0 ", " 75.0 ", " 75.0 "]


def test_a_missing_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="train it with"):
        demo_model()


def test_whitening_keeps_the_images():
    vae = build_parts(3).vae.eval()
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = vae.encode(image).latent_dist
        picture = vae.decode(before.mode()).sample
        std, mean = torch.std_mean(before.mode(), dim=(0, 2, 3))
        fold_latents(vae, mean, std)
        after = vae.encode(image).latent_dist
        torch.testing.assert_close(vae.decode(after.mode()).sample, picture, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after.mode().mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(after.mode().std((0, 2, 3)), torch.full((4,), 4.0), rtol=1e-3, atol=1e-3)


def test_training_runs_and_saves_a_pipeline(tmp_path):
    from diffusers import StableDiffusionPipeline

    from diffusers_oneflow.demo.train import main

    main(["--out", str(tmp_path), "--minutes", "0.2", "--device", "cpu", "--batch", "2", "--vae-batch", "2", "--pool", "4"])
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    numbers = json.loads((tmp_path / "training.json").read_text())
    assert numbers["vae"]["steps"] >= 1
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.hidden_size
