"""Measure a pipeline on the fixed captions: `python -m diffusers_oneflow.demo.evaluate`.

Each of the 200 captions of captions.txt is drawn once, from a seed of its own, and
judged by `detector.py`.  Training never drew the objects of such a caption together
(nor a single one on its background); the captions after the `UNSEEN_MARK` line name
colour-and-shape pairs that it never drew at all.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import demo_model
from .captions import caption_texts, caption_words
from .detector import Verdict, judge
from .request import parse
from .scenes import sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

CRITERIA = ("objects", "relation", "size", "background", "exact")
SEEN, UNSEEN = 160, 40
UNSEEN_MARK = "# pairs never seen in training"


@dataclass(frozen=True)
class Case:
    """One caption, whether it names an unseen pair, and the seed of its noise."""

    caption: str
    unseen: bool
    seed: int


def make_captions(seed: int = 2024) -> list[str]:
    """Return the lines of captions.txt, all different; it was written by this once."""
    generator = torch.Generator().manual_seed(seed)
    lines = ["# scenes of seen pairs, kept out of training"]
    for split, count in (("new", SEEN), ("unseen", UNSEEN)):
        if split == "unseen":
            lines.append(UNSEEN_MARK)
        have = 0
        while have < count:
            scenes = sample(1, generator, split)
            caption = caption_texts(caption_words(scenes, generator, plain=True))[0]
            # One object and no background: training has seen every such caption.
            known = split == "new" and parse(caption).background is None
            if caption not in lines and not (known and scenes.count.item() == 1):
                lines.append(caption)
                have += 1
    return lines


def read_cases() -> list[Case]:
    """Return the cases of captions.txt, in its order."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "captions.txt")
    with open(path, encoding="utf-8") as f:
        lines = f.read().splitlines()
    unseen = False
    cases: list[Case] = []
    for line in lines:
        unseen = unseen or line == UNSEEN_MARK
        if not line.startswith("#"):
            cases.append(Case(line, unseen, seed=len(cases)))
    return cases


def draw(pipe: Any, cases: list[Case], steps: int, guidance: float, batch: int) -> NDArray[Any]:
    """Return the images of the cases, uint8 [N, H, W, 3].

    Each starts from noise of its own seed, so the batch size does not matter.
    """
    images = []
    for i in range(0, len(cases), batch):
        part = cases[i : i + batch]
        noise = [torch.Generator("cpu").manual_seed(case.seed) for case in part]
        output = pipe(
            [case.caption for case in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            output_type="np",
        )
        images.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(images)


def _met(criterion: str, verdict: Verdict) -> bool:
    return bool(getattr(verdict, criterion))


def table(cases: list[Case], verdicts: list[Verdict]) -> str:
    """Return the scores in percent: overall, for seen pairs and for unseen ones.

    "objects": every named object in its colour and shape.  "+ relation, size": that
    and the named relation and sizes.  "all": that, the background, and no object
    too many.  The other columns count each criterion alone.
    """
    columns: dict[str, Callable[[Verdict], bool]] = {
        "objects": lambda v: v.objects,
        "+ relation, size": lambda v: v.objects and v.relation and v.size,
        "all": lambda v: v.all,
        **{f"{k} alone": functools.partial(_met, k) for k in CRITERIA[1:]},
    }
    rows = [["captions", "count", *columns]]
    for name, kinds in (("overall", (False, True)), ("seen pairs", (False,)), ("unseen", (True,))):
        chosen = [v for case, v in zip(cases, verdicts) if case.unseen in kinds]
        if chosen:
            scores = [100 * sum(map(test, chosen)) / len(chosen) for test in columns.values()]
            rows.append([name, str(len(chosen)), *(f"{score:.1f}" for score in scores)])
    rule = ["---"] * len(rows[0])
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def load(backend: str, folder: str, device: str) -> Any:
    """Return the pipeline of `folder` in float32 on the device and the backend.

    Raises:
        ValueError: the backend is unknown.
    """
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder).to(device)
    if backend != "torch":
        from diffusers_oneflow import plugin

        plugin.autoload()
        pipe.to(backend=backend)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_grid(images: NDArray[Any], path: str, columns: int = 20) -> None:
    """Write images, uint8 [N, H, W, 3], as one PNG, row by row."""
    from PIL import Image

    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + height, x : x + width] = image
    Image.fromarray(sheet).save(path)


def main(arguments: list[str] | None = None) -> None:
    """Run the evaluation from the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--backend", default="torch", help="torch, or a backend of diffusers such as oneflow")
    p.add_argument("--model", help="folder of the pipeline; by default the embedded one")
    p.add_argument("--device", default="cpu")
    p.add_argument("--limit", type=int, help="only the first N captions")
    p.add_argument("--batch", type=int, default=20)
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--guidance", type=float, default=7.5)
    p.add_argument("--grid", help="write all images to this PNG")
    p.add_argument("--json", help="write the captions and verdicts to this file")
    args = p.parse_args(arguments)

    cases = read_cases()[: args.limit]
    pipe = load(args.backend, args.model or demo_model(), args.device)
    start = time.monotonic()
    images = draw(pipe, cases, args.steps, args.guidance, args.batch)
    seconds = time.monotonic() - start
    verdicts = [judge(image, parse(case.caption)) for image, case in zip(images, cases)]
    print(table(cases, verdicts))
    print(f"{args.backend}, {args.steps} steps, guidance {args.guidance}: {seconds:.1f} s for {len(cases)} images")
    for case, verdict in zip(cases, verdicts):
        if not verdict.all:
            wrong = [name for name in CRITERIA if not getattr(verdict, name)]
            print(f"  {case.seed:3d} {case.caption!r}: wrong {', '.join(wrong)}")
    if args.grid:
        save_grid(images, args.grid)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump([[c.caption, c.unseen, vars(v)] for c, v in zip(cases, verdicts)], f)


if __name__ == "__main__":
    main()
