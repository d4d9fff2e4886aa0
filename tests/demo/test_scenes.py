"""Sampled scenes keep their promises: splits, margins, clashes, and the batch form."""

import pytest
import torch

from diffusers_oneflow.demo.scenes import (
    COLOURS,
    GAP,
    HELD_OUT_PAIRS,
    IMAGE_SIZE,
    MARGIN,
    SHAPES,
    SIZE_LIMIT,
    Scene,
    Thing,
    has_unseen_pair,
    held_out,
    pack,
    sample,
)


def draw(split, n=500, seed=0):
    return sample(n, torch.Generator().manual_seed(seed), split)


@pytest.mark.parametrize(("split", "unseen", "new"), [("train", False, False), ("new", False, True), ("unseen", True, None)])
def test_splits_hold_what_they_say(split, unseen, new):
    scenes = draw(split)
    assert len(scenes) == 500
    assert (has_unseen_pair(scenes) == unseen).all()
    if new is not None:
        assert (held_out(scenes) == new).all()


def test_training_never_sees_a_held_out_pair():
    scenes = draw("train", 5000)
    pairs = {(COLOURS[c], SHAPES[s]) for c, s in zip(scenes.colour[:, 0].tolist(), scenes.shape[:, 0].tolist())}
    assert len(pairs) == len(COLOURS) * len(SHAPES) - len(HELD_OUT_PAIRS)
    assert not pairs & set(HELD_OUT_PAIRS)


def test_objects_stay_inside_and_apart():
    scenes = draw("any")
    two = scenes.count == 2
    low = scenes.centre - scenes.radius[..., None]
    high = scenes.centre + scenes.radius[..., None]
    for k, there in ((0, torch.ones_like(two)), (1, two)):
        assert (low[there, k] >= MARGIN - 1e-3).all()
        assert (high[there, k] <= IMAGE_SIZE - MARGIN + 1e-3).all()
    rows = torch.arange(len(scenes))[two]
    axis = scenes.axis[two]
    gap = low[rows, 1, axis] - high[rows, 0, axis]
    assert (gap >= GAP - 1e-3).all()


def test_nothing_has_the_colour_of_its_background_or_a_double():
    scenes = draw("any")
    two = scenes.count == 2
    assert (scenes.colour[:, 0] != scenes.background).all()
    assert (scenes.colour[two, 1] != scenes.background[two]).all()
    same = (scenes.colour[:, 0] == scenes.colour[:, 1]) & (scenes.shape[:, 0] == scenes.shape[:, 1])
    assert not (same & two).any()


def test_a_seed_gives_one_batch():
    first, again, other = draw("train", 50, 3), draw("train", 50, 3), draw("train", 50, 4)
    assert torch.equal(first.centre, again.centre)
    assert not torch.equal(first.centre, other.centre)


def test_pack_reads_names():
    things = (Thing("red", "circle", SIZE_LIMIT + 5, 30, 40), Thing("blue", "star", SIZE_LIMIT - 5, 90, 50))
    scenes = pack([Scene(things, "white")])
    assert (scenes.count.item(), scenes.axis.item(), scenes.size.tolist()) == (2, 0, [[1, 0]])
    assert COLOURS[scenes.background.item()] == "white"


def test_errors():
    with pytest.raises(ValueError, match="unknown split 'test'"):
        draw("test")
    with pytest.raises(ValueError, match="one or two things"):
        pack([Scene((), "white")])
