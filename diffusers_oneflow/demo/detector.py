"""Find the objects of an image by plain image analysis, and judge it against a caption.

No learned part: pixels are named by the nearest palette colour, connected patches
of one colour that survive an erosion are objects, and an object's shape and radius
are those of the ideal silhouette that overlaps it best.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .render import distance
from .request import Named, Request
from .scenes import COLOURS, PALETTE, SHAPES, SIZE_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOUR_REACH = 60.0  # RGB distance within which a pixel counts as a palette colour
CORE_PIXELS = 16  # of a patch after an erosion by one pixel, at least
OVERLAP = 0.7  # intersection over union with the best silhouette, at least
REACH = 3  # pixels around a patch that may hold its anti-aliased edge


@dataclass(frozen=True)
class Found:
    """One object of an image; shape is None when no silhouette fits.

    radius, x and y in pixels; overlap is the intersection over union of the
    object's pixels with the best silhouette, 0 to 1.
    """

    colour: str
    shape: str | None
    radius: float
    x: float
    y: float
    overlap: float

    @property
    def size(self) -> str:
        """ "small" or "large"."""
        return "small" if self.radius < SIZE_LIMIT else "large"


@dataclass(frozen=True)
class Verdict:
    """How an image meets a request; what the caption leaves open counts as met.

    objects: every named object is there, in its colour and shape.  relation and
    size: as named, False when objects is.  background: as named.  exact: there are
    just as many objects as named.
    """

    objects: bool
    relation: bool
    size: bool
    background: bool
    exact: bool

    @property
    def all(self) -> bool:
        """Everything above at once."""
        return self.objects and self.relation and self.size and self.background and self.exact


def _grow(mask: NDArray[Any]) -> NDArray[Any]:
    """Return the bool mask [H, W] with its 4-neighbours added."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def _patches(mask: NDArray[Any]) -> Iterator[NDArray[np.bool_]]:
    """Yield the 4-connected patches of a bool mask [H, W], each as such a mask."""
    left = mask.copy()
    while left.any():
        patch = np.zeros_like(mask)
        stack = [tuple(np.argwhere(left)[0])]
        left[stack[0]] = False
        while stack:
            y, x = stack.pop()
            patch[y, x] = True
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]
                if inside and left[v, u]:
                    left[v, u] = False
                    stack.append((v, u))
        yield patch


@cache
def _extent(shape: str) -> tuple[float, float, float, float]:
    """Return left, right, top and bottom of a shape of radius one around its centre."""
    line = torch.linspace(-1.3, 1.3, 1041)
    y, x = torch.meshgrid(line, line, indexing="ij")
    inside = distance(shape, x, y) <= 0
    xs, ys = x[inside], y[inside]
    return xs.min().item(), xs.max().item(), ys.min().item(), ys.max().item()


def _fit(mask: NDArray[Any]) -> tuple[str, float, float, float, float]:
    """Return shape, radius, centre x and y, and overlap of the best silhouette."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    size = torch.tensor(mask.shape)
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size.tolist()), indexing="ij")
    target, best = torch.from_numpy(mask), ("", 0.0, 0.0, 0.0, -1.0)
    for shape in SHAPES:
        left, right, top, bottom = _extent(shape)
        guess = ((x1 - x0) / (right - left) + (y1 - y0) / (bottom - top)) / 2
        for radius in (guess - 0.6, guess, guess + 0.6):
            cx = (x0 + x1) / 2 - radius * (left + right) / 2
            cy = (y0 + y1) / 2 - radius * (top + bottom) / 2
            ideal = distance(shape, (x - cx) / radius, (y - cy) / radius) <= 0
            overlap = ((ideal & target).sum() / (ideal | target).sum()).item()
            if overlap > best[-1]:
                best = (shape, radius, cx, cy, overlap)
    return best


def detect(image: NDArray[Any]) -> tuple[str | None, list[Found]]:
    """Return the background colour and the objects of an image.

    `image` is uint8 [H, W, 3].  The background is the palette colour of most border
    pixels, None when those have none.

    Raises:
        ValueError: the image is of another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError("the image must be uint8 [H, W, 3]")
    pixels = image.astype(np.float32)
    palette = np.array(list(PALETTE.values()), dtype=np.float32)
    far = np.linalg.norm(pixels[:, :, None] - palette, axis=-1)
    label = np.where(far.min(-1) <= COLOUR_REACH, far.argmin(-1), -1)
    border = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
    votes = np.bincount(border + 1, minlength=len(palette) + 1)
    ground = int(votes.argmax()) - 1

    found = []
    for colour in range(len(palette)):
        if colour == ground:
            continue
        for patch in _patches(label == colour):
            # Blends at an edge can pass for a third colour, but only as thin lines.
            core = ~_grow(~patch)
            if core.sum() < CORE_PIXELS:
                continue
            if ground >= 0:
                # Where an edge pixel is more than half covered, it is the object's.
                near = patch
                for _ in range(REACH):
                    near = _grow(near)
                way = palette[colour] - palette[ground]
                cover = (pixels - palette[ground]) @ way / (way @ way)
                patch = patch | (near & (label != colour) & (cover > 0.5) & (label != ground))
            shape, radius, x, y, overlap = _fit(patch)
            found.append(
                Found(COLOURS[colour], shape if overlap >= OVERLAP else None, float(radius), float(x), float(y), overlap)
            )
    return (COLOURS[ground] if ground >= 0 else None), found


def _is(found: Found, named: Named) -> bool:
    return found.shape == named.shape and named.colour in (None, found.colour)


def _stands(relation: str | None, a: Found, b: Found) -> bool:
    """Is `a` where the relation says, seen from `b`?  The larger offset decides."""
    dx, dy = a.x - b.x, a.y - b.y
    if relation is None:
        return True
    if abs(dx) > abs(dy):
        return relation == ("left" if dx < 0 else "right")
    return relation == ("above" if dy < 0 else "below")


def judge(image: NDArray[Any], request: Request) -> Verdict:
    """Return how an image, uint8 [H, W, 3], meets a request.

    When objects could be matched to names in several ways, the best one counts.
    """
    ground, found = detect(image)
    background = request.background in (None, ground)
    exact = len(found) == len(request.things)
    best = Verdict(False, False, False, background, exact)
    for chosen in permutations(found, len(request.things)):
        if not all(_is(f, n) for f, n in zip(chosen, request.things)):
            continue
        size = all(n.size in (None, f.size) for f, n in zip(chosen, request.things))
        relation = len(chosen) < 2 or _stands(request.relation, *chosen)
        verdict = Verdict(True, relation, size, background, exact)
        if (True, relation + size) > (best.objects, best.relation + best.size):
            best = verdict
    return best
