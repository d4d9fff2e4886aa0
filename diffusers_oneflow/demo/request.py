"""What a caption asks for, read from its text alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .captions import PREFIX_WORDS, SIZE_WORDS
from .scenes import COLOURS, SHAPES, SIZES

_SIZES = {word: SIZES[i] for i, words in enumerate(SIZE_WORDS) for word in words}
_RELATIONS = {
    "to the left of": "left", "left of": "left", "to the right of": "right",
    "right of": "right", "above": "above", "over": "above", "below": "below",
    "under": "below", "and": None,
}  # fmt: skip
_JOIN = re.compile(r" (" + "|".join(_RELATIONS) + r") ")
_COLOUR = "|".join(COLOURS)
_FRONT = re.compile(rf"^on an? ({_COLOUR}) background, ")
_TAIL = re.compile(rf"(?:,| on an?| against an?| with an?) ({_COLOUR}) background$")
_PREFIX = re.compile(rf"^an? (?:{'|'.join(PREFIX_WORDS)}) of ")


@dataclass(frozen=True)
class Named:
    """One object of a caption; what the caption leaves open is None."""

    shape: str
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Request:
    """What a caption asks for.

    `relation` is where the first object stands to the second: "left", "right",
    "above", "below", or None when there is one object or it is left open.
    """

    things: tuple[Named, ...]
    relation: str | None = None
    background: str | None = None


def _named(text: str) -> Named:
    words = [w for w in text.split() if w not in ("a", "an", "the")]
    size = _SIZES[words.pop(0)] if words and words[0] in _SIZES else None
    colour = words.pop(0) if words and words[0] in COLOURS else None
    if len(words) != 1 or words[0] not in SHAPES:
        raise ValueError(f"no object in {text!r}")
    return Named(shape=words[0], colour=colour, size=size)


def parse(caption: str) -> Request:
    """Return what `caption` asks for.

    Raises:
        ValueError: the caption is not of the forms that `captions.py` makes.
    """
    text = caption.strip().lower().removesuffix(".")
    background = None
    for pattern in (_FRONT, _TAIL):
        if match := pattern.search(text):
            background = match[1]
            text = text[: match.start()] + text[match.end() :]
    text = _PREFIX.sub("", text)
    parts = _JOIN.split(text)
    if len(parts) == 1:
        return Request((_named(text),), None, background)
    if len(parts) != 3:
        raise ValueError(f"more than two objects in {caption!r}")
    return Request((_named(parts[0]), _named(parts[2])), _RELATIONS[parts[1]], background)
