import json

import numpy as np
import pytest
import torch

from benchmarks import gpu_images
from diffusers_oneflow.demo import evaluate


def test_decibels():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    other = images.copy()
    other[1] = 51  # a fifth of the range everywhere
    assert gpu_images.decibels(other, images) == [gpu_images.IDENTICAL, pytest.approx(20 * np.log10(5))]


def found(stock, ours, stock_decibels=40.0, our_decibels=40.0):
    return {
        "torch float32": {},
        "torch": {"met": stock, "decibels": [stock_decibels]},
        "oneflow": {"met": ours, "decibels": [our_decibels]},
    }


@pytest.mark.parametrize(
    "stock, ours, passed",
    [
        ([True] * 10, [True] * 10, True),
        ([True] * 100, [False] * 3 + [True] * 97, True),  # 3 captions may be chance
        ([True] * 100, [False] * 5 + [True] * 95, False),
        ([True] * 95 + [False] * 5, [False] * 5 + [True] * 95, True),  # others, but as many
        ([False] * 10, [True] * 10, True),
    ],
)
def test_scores_are_compared_caption_by_caption(stock, ours, passed):
    assert [bar["passed"] for bar in gpu_images.judged(found(stock, ours))] == [passed, True]


def test_decibels_are_compared():
    assert [bar["passed"] for bar in gpu_images.judged(found([True], [True], 40.0, 39.1))] == [True, True]
    assert [bar["passed"] for bar in gpu_images.judged(found([True], [True], 40.0, 38.9))] == [True, False]


def test_the_batch_does_not_matter_and_noise_is_that_of_every_dtype():
    cases = evaluate.read_cases()[:3]
    pipe = gpu_images.pipeline("torch", torch.float32, torch.device("cpu"))
    alone, together = (gpu_images.draw(pipe, cases, 2, batch) for batch in (1, 3))
    assert min(gpu_images.decibels(alone, together)) > 50
    half = gpu_images.draw(gpu_images.pipeline("torch", torch.bfloat16, torch.device("cpu")), cases, 2, 3)
    assert min(gpu_images.decibels(half, together)) > 20


def test_the_command(tmp_path):
    argv = ["--device", "cpu", "--captions", "3", "--batch", "2", "--steps", "2", "--dtype", "bfloat16", "--out", str(tmp_path)]
    code = gpu_images.main(argv)
    written = json.loads((tmp_path / "gpu-images-bfloat16.json").read_text())
    # Of three images one may well lie below.
    assert code == (0 if all(bar["passed"] for bar in written["bars"]) else 1)
    wide, stock, ours = (written["peers"][name] for name in ("torch float32", "torch bfloat16", "oneflow bfloat16"))
    assert wide["decibels"] == [gpu_images.IDENTICAL] * 3
    assert all(20 < value < gpu_images.IDENTICAL for value in (*stock["decibels"], *ours["decibels"]))
    assert ours["decibels"] != stock["decibels"] and ours["built"]["unet"]["kernels"]
