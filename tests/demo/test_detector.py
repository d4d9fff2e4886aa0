"""The detector reads drawn scenes without a fault, and sees planted ones."""

import numpy as np
import pytest
import torch

from diffusers_oneflow.demo.captions import caption_texts, caption_words
from diffusers_oneflow.demo.detector import detect, judge
from diffusers_oneflow.demo.render import distance, render
from diffusers_oneflow.demo.request import parse
from diffusers_oneflow.demo.scenes import COLOURS, PALETTE, SHAPES, Scene, Thing, pack, sample


def pixels(scenes):
    return ((render(scenes) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


SCENE = Scene((Thing("red", "circle", 14, 30, 64), Thing("blue", "star", 24, 90, 64)), "white")


def test_drawn_scenes_meet_their_captions():
    generator = torch.Generator().manual_seed(11)
    scenes = sample(60, generator, "any")
    texts = caption_texts(caption_words(scenes, generator))
    for image, text in zip(pixels(scenes), texts):
        assert judge(image, parse(text)).all, text


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_told_from_the_others(shape):
    for radius in (14.0, 24.0):
        ground, found = detect(pixels(pack([Scene((Thing("purple", shape, radius, 60.5, 66.0),), "yellow")]))[0])
        assert ground == "yellow"
        assert [f.shape for f in found] == [shape]
        assert found[0].radius == pytest.approx(radius, abs=1.0)
        assert (found[0].x, found[0].y) == pytest.approx((60.5, 66.0), abs=1.0)


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a small red circle left of a large blue star on a white background", set()),
        ("a small red circle right of a large blue star on a white background", {"relation"}),
        ("a large red circle left of a large blue star on a white background", {"size"}),
        ("a small red circle left of a large blue star on a pink background", {"background"}),
        ("a small green circle left of a large blue star", {"objects", "relation", "size"}),
        ("a small red square left of a large blue star", {"objects", "relation", "size"}),
        ("a small red circle", {"exact"}),
    ],
)
def test_each_criterion_fails_alone(caption, wrong):
    verdict = judge(pixels(pack([SCENE]))[0], parse(caption))
    assert {name for name, met in vars(verdict).items() if not met} == wrong


def test_noise_holds_no_object():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not judge(image, parse("a red circle")).objects


def test_an_image_of_another_type_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        detect(np.zeros((128, 128, 3), np.float32))


def test_a_rendered_image_has_palette_colours_and_soft_edges():
    image = pixels(pack([SCENE]))[0]
    assert tuple(image[0, 0]) == PALETTE["white"]
    assert tuple(image[64, 30]) == PALETTE["red"]
    assert image.shape == (128, 128, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_an_unknown_shape_has_no_distance():
    with pytest.raises(ValueError, match="unknown shape 'hexagon'"):
        distance("hexagon", torch.zeros(1), torch.zeros(1))
    assert len(COLOURS) == len(PALETTE)
