"""The command behind `make demo`."""

import numpy as np
import pytest
from PIL import Image

from diffusers_oneflow.demo import compare


def test_difference_is_the_largest_of_all_pixels():
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[1, 2, 0], b[3, 3, 2] = 7, 255
    assert compare.difference(Image.fromarray(a), Image.fromarray(b)) == 255
    assert compare.difference(Image.fromarray(a), Image.fromarray(a)) == 0


def test_side_by_side_shows_both():
    sheet = compare.side_by_side({"a": Image.new("RGB", (8, 8), "red"), "b": Image.new("RGB", (8, 8), "blue")})
    colours = {colour for _, colour in sheet.getcolors()}
    assert {(255, 0, 0), (0, 0, 255)} <= colours


@pytest.mark.parametrize("prompt", ["a yellow star on a blue background"])
def test_the_command_writes_three_images_and_says_how_far_apart_they_are(tmp_path, capsys, prompt):
    assert compare.main([prompt, "--out", str(tmp_path), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert prompt in said
    assert "OneFlow: 3 graphs, 0 fallbacks" in said
    assert "largest pixel difference: 0 of 255" in said or "largest pixel difference: 1 of 255" in said
    for name in ("oneflow", "torch", "side-by-side"):
        assert Image.open(tmp_path / f"demo-{name}.png").width >= 128
