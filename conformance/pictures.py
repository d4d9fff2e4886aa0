"""What two backends drew, as small pictures that a page can hold: data URIs of PNGs.

Images as they are, of a video the first frame, of latents the first channel; sound, and vectors, as a curve.
"""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST = 128  # pixels a side
_LEVELS = 255


def of(torch: NDArray[np.uint8], ours: NDArray[np.uint8]) -> dict[str, str]:
    """``torch``, ``ours`` and ``difference`` (stretched to the full range) of two uint8 arrays of one shape."""
    first, second = flat(torch), flat(ours)
    if first.ndim == 1:
        return {"torch": curve(first), "ours": curve(second), "difference": curve(second.astype(float) - first, None)}
    off = np.abs(second.astype(np.int16) - first.astype(np.int16))
    off = (off * (_LEVELS / max(1, off.max()))).astype(np.uint8)
    return {"torch": image(first), "ours": image(second), "difference": image(off)}


def flat(drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first image, (h, w) or (h, w, 3), or the first signal, (n,), in what a pipeline drew.

    Images end in their 1, 3 or 4 channels; other arrays of four dimensions are latents (n, c, h, w), of five videos of
    them, and all others signals with the samples last.
    """
    if drawn.ndim >= 3 and drawn.shape[-1] in (1, 3, 4) and min(drawn.shape[-3:-1]) > 4:
        shown: NDArray[np.uint8] = drawn.reshape(-1, *drawn.shape[-3:])[0]
        return shown[..., 0] if shown.shape[-1] == 1 else shown[..., :3]
    if drawn.ndim >= 4:
        if drawn.shape[-1] == 6 and drawn.ndim == 4:  # colours and depth
            return drawn[0, ..., :3]
        shown = drawn.reshape(-1, *drawn.shape[-2:])[0]
        return shown
    return drawn.reshape(-1, drawn.shape[-1])[0] if drawn.ndim else drawn.reshape(1)


def image(pixels: NDArray[np.uint8]) -> str:
    """uint8 (h, w) or (h, w, 3) as a data URI, at most `LARGEST` a side."""
    made = Image.fromarray(np.ascontiguousarray(pixels))
    made.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    made.save(file, "PNG", optimize=True)
    return _uri(file)


def curve(samples: NDArray[Any], limits: tuple[float, float] | None = (0, _LEVELS)) -> str:
    """A signal over its samples as a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6, 0.8), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot(samples, linewidth=0.5, color="black")
    axes.set_ylim(*(limits or (-max(1, np.abs(samples).max()), max(1, np.abs(samples).max()))))
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return _uri(file)


def _uri(file: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
