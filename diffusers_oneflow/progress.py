"""A progress bar for the compilation of large models."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm

# Called with a stage's name and the fraction of it that is done.
Stage = Callable[[str, float], None]
# Below this many bytes of weights a model compiles in a second or two.
_LARGE = 200 * 2**20
# Where each stage ends on the bar, in percent, by the time it takes for Stable Diffusion's UNet.
_SPAN = {"capture": (0, 25), "passes": (25, 27), "lowering": (27, 45), "compiling": (45, 100)}


class Bar:
    """Shows the stages of one compilation; a context manager.

    Args:
        path: the model's name.
        weight_bytes: decides whether the model is large enough for a bar.
        show: True, False, or None for "on a terminal only".
    """

    def __init__(self, path: str, weight_bytes: int, show: bool | None) -> None:
        visible = sys.stderr.isatty() if show is None else show
        self._bar = None
        if visible and weight_bytes >= _LARGE:
            layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
            self._bar = tqdm(total=100, desc=f"{path}: capture", bar_format=layout, leave=False)
        self._path = path

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def stage(self, name: str, done: float) -> None:
        """Stage `name` (capture, passes, lowering, compiling) is `done` of 1 through."""
        if self._bar is None:
            return
        start, end = _SPAN[name]
        self._bar.set_description_str(f"{self._path}: {name}", refresh=False)
        self._bar.n = start + (end - start) * done
        self._bar.refresh()
