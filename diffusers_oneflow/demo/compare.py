"""One prompt on OneFlow and on torch: ``python -m diffusers_oneflow.demo.compare PROMPT``.

Writes both images and one that shows them side by side, and prints how far apart they are.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# transformers speaks of packages it does not find while it is imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from PIL import Image, ImageDraw

from . import demo_model

PROMPT = "a large red circle left of a small blue star on a yellow background"


def draw(pipe: Any, prompt: str, steps: int, seed: int) -> tuple[Image.Image, float]:
    """Return a seeded image and the seconds it took."""
    start = time.perf_counter()
    image = pipe(prompt, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed)).images[0]
    return image, time.perf_counter() - start


def difference(a: Image.Image, b: Image.Image) -> int:
    """Return the largest difference between two images of one size, in levels of 255."""
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def side_by_side(images: dict[str, Image.Image], scale: int = 2, margin: int = 16) -> Image.Image:
    """Return the images in a row, each `scale` times as large with its name above."""
    first = next(iter(images.values()))
    width, height = first.width * scale, first.height * scale
    sheet = Image.new("RGB", (len(images) * (width + margin) + margin, height + 3 * margin), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, image) in enumerate(images.items()):
        x = margin + i * (width + margin)
        pen.text((x, margin // 2), name, fill="black")
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (x, 2 * margin))
    return sheet


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison from the command line; 1 if the images differ by more than one level or torch helped out."""
    import diffusers
    import transformers

    from diffusers_oneflow import explain

    p = argparse.ArgumentParser(prog="python -m diffusers_oneflow.demo.compare", description=__doc__.splitlines()[0])
    p.add_argument("prompt", nargs="?", default=PROMPT)
    p.add_argument("--out", type=Path, default=Path("out"), help="folder for the images")
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--seed", type=int, default=0)
    options = p.parse_args(arguments)

    logs: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    for library in logs:
        library.disable_progress_bar()
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(demo_model())
    pipe.set_progress_bar_config(disable=True)
    expected, torch_seconds = draw(pipe, options.prompt, options.steps, options.seed)
    pipe.to(backend="oneflow")
    image, first_seconds = draw(pipe, options.prompt, options.steps, options.seed)
    again, oneflow_seconds = draw(pipe, options.prompt, options.steps, options.seed)
    report = explain(pipe)

    options.out.mkdir(parents=True, exist_ok=True)
    image.save(options.out / "demo-oneflow.png")
    expected.save(options.out / "demo-torch.png")
    side_by_side({"OneFlow": image, "PyTorch": expected}).save(options.out / "demo-side-by-side.png")
    levels = max(difference(image, expected), difference(again, expected))
    print(f"prompt: {options.prompt}")
    graphs = [graph for component in report.values() for graph in component.graphs]
    compiling = sum(sum(graph.seconds.values()) for graph in graphs)
    print(f"OneFlow: {len(graphs)} graphs, {report.fallbacks} fallbacks, compiled in {compiling:.2f} s")
    print(f"seconds for the image: torch {torch_seconds:.2f}, OneFlow {oneflow_seconds:.2f} ({first_seconds:.2f} the first time)")
    print(f"largest pixel difference: {levels} of 255")
    print(f"written: {', '.join(str(options.out / f'demo-{n}.png') for n in ('oneflow', 'torch', 'side-by-side'))}")
    return int(levels > 1 or report.fallbacks > 0)


if __name__ == "__main__":
    sys.exit(main())
