"""Captions of scenes, batched: the words of a caption are picked with tensor operations.

A caption names one or two objects, and may leave out sizes, the relation, the
background, articles and now and then a colour.  Words are indices into `WORDS`,
each of which is one token of the model's tokenizer; so a training step needs no
strings at all.
"""

from __future__ import annotations

import torch

from .scenes import COLOURS, SHAPES, Scenes

SIZE_WORDS = (("small", "little", "tiny"), ("large", "big", "huge"))
PREFIX_WORDS = ("picture", "drawing", "image")
GRAMMAR_WORDS = (
    ",", ".", "a", "an", "of", "and", "on", "with", "against", "background",
    "to", "the", "left", "right", "above", "over", "below", "under",
)  # fmt: skip
WORDS = COLOURS + SHAPES + sum(SIZE_WORDS, ()) + PREFIX_WORDS + GRAMMAR_WORDS
INDEX = {word: i for i, word in enumerate(WORDS)}
NONE = -1  # marks an empty slot, and pads after a caption's last word


class _Slots:
    """The words of B captions, appended column by column."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        self.columns: list[torch.Tensor] = []

    def chance(self, *weights: float) -> torch.Tensor:
        """Return [B] int64: an index drawn by the weights, which sum to one."""
        edges = torch.tensor(weights, device=self.generator.device).cumsum(0)[:-1]
        draw = torch.rand(self.n, generator=self.generator, device=self.generator.device)
        return torch.bucketize(draw, edges, right=True)

    def one_of(self, words: tuple[str, ...], *weights: float) -> torch.Tensor:
        """Return [B] int64: a word's index, drawn by the weights."""
        table = torch.tensor([INDEX[w] for w in words], device=self.generator.device)
        return table[self.chance(*weights)]

    def put(self, word: str | torch.Tensor, where: torch.Tensor) -> None:
        """Append the word, or a tensor of word indices, to the captions in `where`."""
        index = INDEX[word] if isinstance(word, str) else word
        self.columns.append(torch.where(where, index, NONE))

    def article(self, orange: torch.Tensor, where: torch.Tensor) -> None:
        """Append "a", or "an" where the next word is "orange"."""
        self.put("an", where & orange)
        self.put("a", where & ~orange)

    def packed(self) -> torch.Tensor:
        """Return [B, slots] int64 with the empty slots of each row moved to its end."""
        words = torch.stack(self.columns, 1)
        return words.gather(1, (words < 0).to(torch.uint8).argsort(dim=1, stable=True))


def caption_words(scenes: Scenes, generator: torch.Generator, plain: bool = False) -> torch.Tensor:
    """Draw one caption for each scene.

    `generator` is on the scenes' device.  With `plain` no colour is left out.
    Returns int64 [B, slots], indices into WORDS and then NONE.
    """
    s = _Slots(len(scenes), generator)
    device = scenes.count.device
    orange, always = COLOURS.index("orange"), torch.ones(len(scenes), device=device).bool()
    colour_word = torch.tensor([INDEX[c] for c in COLOURS], device=device)
    shape_word = torch.tensor([INDEX[c] for c in SHAPES], device=device)
    two = scenes.count == 2
    swap = two & (s.chance(0.5, 0.5) == 1)  # name the right or lower object first
    articles = s.chance(0.15, 0.85) == 1
    ground = s.chance(0.35, 0.09, 0.35, 0.07, 0.07, 0.07)  # none, in front, or a tail
    ground_colour = colour_word[scenes.background]

    front = ground == 1
    s.put("on", front)
    s.article(scenes.background == orange, front)
    s.put(ground_colour, front)
    s.put("background", front)
    s.put(",", front)

    prefix, kind = ~front & (s.chance(0.7, 0.3) == 1), s.one_of(PREFIX_WORDS, 0.34, 0.33, 0.33)
    s.put("an", prefix & (kind == INDEX["image"]))
    s.put("a", prefix & (kind != INDEX["image"]))
    s.put(kind, prefix)
    s.put("of", prefix)

    for k in range(2):
        here = always if k == 0 else two
        which = (swap.long() if k == 0 else 1 - swap.long())[:, None]
        colour = scenes.colour.gather(1, which)[:, 0]
        shape = scenes.shape.gather(1, which)[:, 0]
        size = scenes.size.gather(1, which)[:, 0]
        if k == 1:
            _relation(s, scenes.axis, swap, two)
        coloured = here & ((s.chance(0.04, 0.96) == 1) | plain)
        sized = here & (s.chance(0.5, 0.5) == 1)
        size_word = torch.where(
            size == 0,
            s.one_of(SIZE_WORDS[0], 0.6, 0.2, 0.2),
            s.one_of(SIZE_WORDS[1], 0.6, 0.2, 0.2),
        )
        s.article((colour == orange) & coloured & ~sized, here & articles)
        s.put(size_word, sized)
        s.put(colour_word[colour], coloured)
        s.put(shape_word[shape], here)

    tail = ground >= 2
    s.put("on", ground == 2)
    s.put("against", ground == 3)
    s.put("with", ground == 4)
    s.put(",", ground == 5)
    s.article(scenes.background == orange, tail & (ground != 5))
    s.put(ground_colour, tail)
    s.put("background", tail)
    s.put(".", s.chance(0.95, 0.05) == 1)
    return s.packed()


def _relation(s: _Slots, axis: torch.Tensor, swap: torch.Tensor, two: torch.Tensor) -> None:
    """Append how the first named object stands to the second, or "and"."""
    stated = two & (s.chance(0.12, 0.88) == 1)
    across, down = stated & (axis == 0), stated & (axis == 1)
    long = across & (s.chance(0.5, 0.5) == 1)
    s.put("and", two & ~stated)
    s.put("to", long)
    s.put("the", long)
    s.put("left", across & ~swap)
    s.put("right", across & swap)
    s.put("of", across)
    s.put(s.one_of(("above", "over"), 0.75, 0.25), down & ~swap)
    s.put(s.one_of(("below", "under"), 0.75, 0.25), down & swap)


def caption_texts(words: torch.Tensor) -> list[str]:
    """Return the B captions of `caption_words` as text."""
    texts = []
    for row in words.tolist():
        text = " ".join(WORDS[i] for i in row if i != NONE)
        texts.append(text.replace(" ,", ",").replace(" .", "."))
    return texts


def caption_ids(words: torch.Tensor, table: torch.Tensor, start: int, end: int, length: int) -> torch.Tensor:
    """Return the token ids of captions, int64 [B, length].

    `table` [len(WORDS)] int64 holds the token id of each word; `start` and `end`
    are the ids around the text, and `end` also pads.

    Raises:
        ValueError: a caption does not fit in `length` tokens.
    """
    room = length - 2
    if (words[:, room:] != NONE).any():
        raise ValueError(f"a caption has more than {room} words")
    words = words[:, :room]
    ids = torch.where(words == NONE, end, table[words.clamp(min=0)])
    ids = torch.nn.functional.pad(ids, (1, length - 1 - ids.shape[1]), value=end)
    ids[:, 0] = start
    return ids
