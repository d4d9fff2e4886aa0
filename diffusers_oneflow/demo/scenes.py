"""What the demo model draws: the vocabulary, scenes, and seeded sampling of them.

A scene is one or two flat shapes on a uniform background, in a square image of
`IMAGE_SIZE` pixels with x to the right and y downwards.  Scenes are sampled in
batches of tensors on any device, so that a GPU can draw every training batch.

Two kinds of scenes never reach training: those with a colour-and-shape pair of
`HELD_OUT_PAIRS`, and a fixed sixteenth of all combinations (`held_out`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

IMAGE_SIZE = 128

# Far apart in RGB, so that a detector can name a pixel by the nearest entry.
PALETTE = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 225, 53),
    "green": (30, 150, 60),
    "cyan": (0, 200, 215),
    "blue": (35, 70, 220),
    "purple": (125, 40, 170),
    "pink": (255, 150, 200),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = ("small", "large")
RADIUS_RANGES = ((13.5, 15.5), (23.0, 25.5))  # pixels, one range per entry of SIZES
SIZE_LIMIT = 19.25  # pixels: below it an object is small, midway between the ranges
MARGIN, GAP = 4.0, 8.0  # pixels: to the border, and between two objects at least

# One per shape, eight different colours.
HELD_OUT_PAIRS = (
    ("orange", "circle"), ("purple", "square"), ("cyan", "triangle"), ("red", "diamond"),
    ("blue", "star"), ("pink", "cross"), ("green", "ring"), ("yellow", "heart"),
)  # fmt: skip
SPLITS = ("train", "new", "unseen", "any")


@dataclass(frozen=True)
class Thing:
    """One object: names from COLOURS and SHAPES; radius and centre x, y in pixels."""

    colour: str
    shape: str
    radius: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One scene: one or two `Thing`s (left or upper one first) and a background colour."""

    things: tuple[Thing, ...]
    background: str


@dataclass
class Scenes:
    """A batch of B scenes as tensors, all on one device.

    count [B] int64, 1 or 2 (more are drawn if the tensors hold more); colour, shape, size [B, 2] int64 indices into COLOURS,
    SHAPES and SIZES; radius [B, 2] and centre [B, 2, 2] (x, y) float32 pixels;
    background [B] int64; axis [B] int64, 0 when the first object is left of the
    second and 1 when it is above.  Where count is 1, entries of the second object
    have no meaning.
    """

    count: torch.Tensor
    colour: torch.Tensor
    shape: torch.Tensor
    size: torch.Tensor
    radius: torch.Tensor
    centre: torch.Tensor
    background: torch.Tensor
    axis: torch.Tensor

    def __len__(self) -> int:
        return self.count.shape[0]

    def __getitem__(self, index: slice | torch.Tensor) -> Scenes:
        """Return the scenes at `index`, a slice or a tensor of indices or booleans."""
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def write(self, start: int, other: Scenes) -> None:
        """Copy `other` over the scenes from `start` on, in place."""
        for f in fields(self):
            getattr(self, f.name)[start : start + len(other)] = getattr(other, f.name)


def pack(scenes: list[Scene], device: str | torch.device = "cpu") -> Scenes:
    """Return a list of named scenes as one batch.

    Raises:
        ValueError: a scene has no or more than two things, or a name is unknown.
    """
    rows = []
    for scene in scenes:
        if not 1 <= len(scene.things) <= 2:
            raise ValueError(f"a scene has one or two things, not {len(scene.things)}")
        a, b = scene.things[0], scene.things[-1]
        rows.append((len(scene.things), a, b, COLOURS.index(scene.background)))

    def whole(pick: Callable[[Thing], float]) -> torch.Tensor:
        return torch.tensor([[pick(a), pick(b)] for _, a, b, _ in rows], device=device)

    centre = torch.tensor([[[a.x, a.y], [b.x, b.y]] for _, a, b, _ in rows], device=device, dtype=torch.float32)
    apart = (centre[:, 1] - centre[:, 0]).abs()
    radius = whole(lambda t: float(t.radius))
    return Scenes(
        count=torch.tensor([r[0] for r in rows], device=device),
        colour=whole(lambda t: COLOURS.index(t.colour)),
        shape=whole(lambda t: SHAPES.index(t.shape)),
        size=(radius > SIZE_LIMIT).long(),
        radius=radius,
        centre=centre,
        background=torch.tensor([r[3] for r in rows], device=device),
        axis=(apart[:, 1] > apart[:, 0]).long(),
    )


def has_unseen_pair(scenes: Scenes) -> torch.Tensor:
    """Return [B] bool: does the scene hold a pair of HELD_OUT_PAIRS?"""
    unseen = is_unseen(scenes)
    return unseen[:, 0] | (unseen[:, 1] & (scenes.count == 2))


def is_unseen(scenes: Scenes) -> torch.Tensor:
    """Return bool, shaped as `scenes.colour`: is the object's pair one of HELD_OUT_PAIRS?"""
    pair = scenes.colour * len(SHAPES) + scenes.shape
    unseen = torch.zeros(pair.shape, dtype=torch.bool, device=pair.device)
    for colour, shape in HELD_OUT_PAIRS:
        unseen |= pair == COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)
    return unseen


def held_out(scenes: Scenes) -> torch.Tensor:
    """Return [B] bool: is the combination kept out of training?

    The combination is which two colour-and-shape pairs stand together, in whatever
    order and place, or the pair and the background of a single object; a fixed
    hash keeps one in sixteen out.
    """
    pair = scenes.colour * len(SHAPES) + scenes.shape
    pairs = len(COLOURS) * len(SHAPES)
    two = pair.amin(1) * pairs + pair.amax(1)
    one = pairs * pairs + pair[:, 0] * len(COLOURS) + scenes.background
    key = torch.where(scenes.count == 2, two, one)
    return (((key * 2654435761) % 2**32) >> 16) % 16 == 0


def _draw(n: int, generator: torch.Generator, device: torch.device) -> Scenes:
    """Draw n scenes with no regard to splits or clashing colours."""

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (n, *shape), generator=generator, device=device)

    def real(*shape: int) -> torch.Tensor:
        return torch.rand((n, *shape), generator=generator, device=device)

    count = 1 + (real() < 0.8).long()
    size, axis = whole(len(SIZES), 2), whole(2)
    ranges = torch.tensor(RADIUS_RANGES, device=device)[size]
    radius = ranges[..., 0] + (ranges[..., 1] - ranges[..., 0]) * real(2)

    # Along the axis of the relation the free pixels are shared out at random
    # before, between and after the two objects, so nothing is ever rejected.
    free = IMAGE_SIZE - 2 * MARGIN - GAP - 2 * radius.sum(1)
    cuts = real(2).sort(1).values * free[:, None]
    first = MARGIN + cuts[:, 0] + radius[:, 0]
    second = MARGIN + cuts[:, 1] + GAP + 2 * radius[:, 0] + radius[:, 1]

    # Across it they differ by at most half as much, so that the relation is plain.
    def inside(value: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return value.clamp(MARGIN + r, IMAGE_SIZE - MARGIN - r)

    low, high = MARGIN + radius[:, 0], IMAGE_SIZE - MARGIN - radius[:, 0]
    across = low + (high - low) * real()
    drift = (real() - 0.5) * (second - first)
    other = inside(across + drift, radius[:, 1])
    centre = torch.stack([torch.stack([first, across], 1), torch.stack([second, other], 1)], 1)  # [n, object, (along, across)]
    centre = torch.where((axis == 1)[:, None, None], centre.flip(-1), centre)

    # A single object may be anywhere.
    span = IMAGE_SIZE - 2 * MARGIN - 2 * radius[:, :1]
    alone = MARGIN + radius[:, :1] + span * real(2)
    centre[:, 0] = torch.where((count == 1)[:, None], alone, centre[:, 0])
    return Scenes(
        count=count,
        colour=whole(len(COLOURS), 2),
        shape=whole(len(SHAPES), 2),
        size=size,
        radius=radius,
        centre=centre,
        background=whole(len(COLOURS)),
        axis=axis,
    )


def sample(n: int, generator: torch.Generator, split: str = "train") -> Scenes:
    """Draw n scenes on the generator's device.

    No object has the background's colour, and two objects differ in colour or
    shape.  `split` is "train" (seen pairs, training combinations), "new" (seen
    pairs, combinations kept out of training), "unseen" (at least one pair of
    HELD_OUT_PAIRS) or "any".

    Raises:
        ValueError: the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    found, have = [], 0
    while have < n:
        s = _draw(2 * n + 64, generator, generator.device)
        two = s.count == 2
        clash = s.colour == s.background[:, None]
        same = (s.colour[:, 0] == s.colour[:, 1]) & (s.shape[:, 0] == s.shape[:, 1])
        good = ~(clash[:, 0] | (two & (clash[:, 1] | same)))
        unseen, new = has_unseen_pair(s), held_out(s)
        if split == "train":
            good &= ~unseen & ~new
        elif split == "new":
            good &= ~unseen & new
        elif split == "unseen":
            good &= unseen
        found.append(s[good])
        have += len(found[-1])
    joined = {f.name: torch.cat([getattr(s, f.name) for s in found]) for f in fields(Scenes)}
    return Scenes(**joined)[:n]
