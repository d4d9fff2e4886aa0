"""The embedded demo model: a small text-to-image pipeline in stock diffusers format.

It draws scenes such as "a small green triangle left of a large red circle on a
yellow background" at 128x128 pixels.  `demo_model()` gives its folder; the other
modules of this package are how it was made and how it is measured.
"""

from __future__ import annotations

import os

__all__ = ["demo_model"]


def demo_model() -> str:
    """Return the absolute path of the folder with the demo model.

    The folder loads with ``StableDiffusionPipeline.from_pretrained(path)``.
    Nothing heavy is imported.

    Raises:
        FileNotFoundError: the folder, or its ``model_index.json``, is missing.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")
    if not os.path.isfile(os.path.join(path, "model_index.json")):
        raise FileNotFoundError(
            f"The demo model is missing: {path} has no model_index.json. Reinstall "
            "diffusers_oneflow, or train it with `python -m diffusers_oneflow.demo.train`."
        )
    return path
