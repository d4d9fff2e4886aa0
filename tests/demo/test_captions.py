"""Captions say what their scene holds, and the parser reads the same back."""

from itertools import pairwise

import pytest
import torch

from diffusers_oneflow.demo.captions import NONE, WORDS, caption_ids, caption_texts, caption_words
from diffusers_oneflow.demo.request import parse
from diffusers_oneflow.demo.scenes import COLOURS, SHAPES, SIZES, sample

OPPOSITE = {"left": "right", "above": "below"}


def drawn(n=300, plain=False):
    generator = torch.Generator().manual_seed(5)
    scenes = sample(n, generator, "any")
    words = caption_words(scenes, generator, plain)
    return scenes, words, caption_texts(words)


def test_every_statement_of_a_caption_is_true():
    scenes, _, texts = drawn()
    stated = 0
    for i, text in enumerate(texts):
        request = parse(text)
        count = scenes.count[i].item()
        assert len(request.things) == count
        facts = [(COLOURS[scenes.colour[i, k]], SHAPES[scenes.shape[i, k]], SIZES[scenes.size[i, k]]) for k in range(count)]
        relation = ("left", "above")[scenes.axis[i].item()]
        # The caption may name the second object first; the relation then turns around.
        for order, said in ((facts, relation), (facts[::-1], OPPOSITE[relation])):
            agree = all(
                t.shape == shape and t.colour in (None, colour) and t.size in (None, size)
                for t, (colour, shape, size) in zip(request.things, order)
            )
            if agree and request.relation in (None, said):
                break
        else:
            pytest.fail(f"{text!r} does not describe {facts}, {relation}")
        assert request.background in (None, COLOURS[scenes.background[i]])
        stated += request.relation is not None
    assert stated > 100


def test_plain_captions_name_every_colour():
    assert all(thing.colour for text in drawn(plain=True)[2] for thing in parse(text).things)
    assert not all(thing.colour for text in drawn()[2] for thing in parse(text).things)


def test_an_stands_before_vowels_only():
    for text in drawn()[2]:
        words = text.replace(",", "").split()
        for article, word in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word in ("orange", "image")), text


def test_ids_are_padded_by_the_end_token():
    words = torch.tensor([[3, 4, NONE], [1, NONE, NONE]])
    ids = caption_ids(words, torch.arange(len(WORDS)) + 100, start=7, end=8, length=6)
    assert ids.tolist() == [[7, 103, 104, 8, 8, 8], [7, 101, 8, 8, 8, 8]]


def test_too_long_a_caption_is_refused():
    with pytest.raises(ValueError, match="more than 2 words"):
        caption_ids(torch.tensor([[3, 4, 5]]), torch.arange(len(WORDS)), start=7, end=8, length=4)


@pytest.mark.parametrize("text", ["a red dog", "a red circle and a blue star and a ring", "", "circle circle"])
def test_the_parser_refuses_what_it_does_not_know(text):
    with pytest.raises(ValueError):
        parse(text)


def test_the_parser_reads_every_form():
    request = parse("On an orange background, an image of a tiny red circle to the left of big star.")
    assert request.background == "orange"
    assert request.relation == "left"
    assert [(t.size, t.colour, t.shape) for t in request.things] == [("small", "red", "circle"), ("large", None, "star")]
