"""Draw every line of a file: ``python examples/batch.py prompts.txt --out images``.

A line is a prompt or, in a .jsonl file, an object with "prompt" and, if wanted, "seed" and "negative_prompt". Every PNG file
carries as text what it was drawn from. An interrupted run finds by that what is left: start it again.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

# transformers speaks of packages it does not find while it is imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

DTYPES = ("float32", "bfloat16", "float16")

Prompts = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Text, a prompt a line, or JSON lines (.jsonl).")]
Out = Annotated[Path, typer.Option(help="The folder for the images and index.jsonl.")]
Model = Annotated[str, typer.Option(help='Folder or repository of a pipeline; "demo" is the small one of the package.')]
Backend = Annotated[str, typer.Option(help="oneflow, torch, or another one that is installed.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Lines that are drawn at once.")]
Seed = Annotated[int, typer.Option(help="Added to a line's number, it is the seed of a line that names none.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; by default the pipeline's.")]
Size = Annotated[int | None, typer.Option(min=8, help="Width and height in pixels; by default the model's.")]
Dtype = Annotated[str, typer.Option(help="Of the model: float32, bfloat16 or float16.")]

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Line:
    """What to draw; `number` counts the file's lines from 1."""

    number: int
    prompt: str
    seed: int
    negative_prompt: str = ""


@dataclass(frozen=True)
class Settings:
    """What all lines have in common."""

    model: str
    backend: str
    dtype: str
    steps: int
    guidance: float | None = None
    size: int | None = None


@app.command()
def main(
    prompts: Prompts,
    out: Out = Path("images"),
    model: Model = "demo",
    backend: Backend = "oneflow",
    batch: Batch = 4,
    seed: Seed = 0,
    steps: Steps = 25,
    guidance: Guidance = None,
    size: Size = None,
    dtype: Dtype = "float32",
):
    """Draw every line of a file that is not drawn yet."""
    settings = Settings(model, backend, dtype, steps, guidance, size)
    folder = opened(prompts, out, seed, settings)
    folder.write_index()
    if left := folder.left(batch):
        pipe = load(settings)
        try:
            with tqdm(total=len(folder.lines), initial=len(folder.done), unit="image") as bar:
                for lines in left:
                    bar.update(folder.put(lines, draw(pipe, lines, settings)))
        except KeyboardInterrupt:
            stop("interrupted; the same command draws what is left", code=130)
    folder.write_index()
    print(f"{folder.index}: {len(folder.done)} images")


def opened(prompts: Path, out: Path, seed: int, settings: Settings) -> "Folder":
    """The folder for what the command line asks for; ends the process with a sentence where that cannot be done."""
    if settings.dtype not in DTYPES:
        stop(f"--dtype {settings.dtype} is none of {', '.join(DTYPES)}")
    try:
        return Folder(out, settings, read(prompts, seed))
    except (OSError, ValueError) as error:
        stop(str(error))


def read(file: Path, seed: int) -> list[Line]:
    """The lines of a file that are not blank; those without a seed get `seed` plus their number.

    Raises:
        ValueError: a line of a .jsonl file is not such an object, or the file is not UTF-8.
    """
    lines = []
    with file.open(encoding="utf-8-sig") as text:
        for number, words in enumerate(text, 1):
            if not words.strip():
                continue
            try:
                asked = _asked(words) if file.suffix == ".jsonl" else {"prompt": words.strip()}
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
            lines.append(Line(number, **{"seed": seed + number, **asked}))
    return lines


def _asked(words: str) -> dict:
    asked = json.loads(words)
    kinds = {"prompt": str, "seed": int, "negative_prompt": str}
    if not isinstance(asked, dict) or "prompt" not in asked:
        raise ValueError('it is no object with a "prompt"')
    for key, value in asked.items():
        if key not in kinds:
            raise ValueError(f'"{key}" is none of {", ".join(kinds)}')
        if type(value) is not kinds[key]:
            raise ValueError(f'"{key}" has to be a {"number" if kinds[key] is int else "string"}')
    return asked


def batches(lines: list[Line], size: int) -> Iterator[list[Line]]:
    """Cut the lines into batches; those with a negative prompt have their own, since pipelines treat "" and none differently."""
    for _, group in groupby(lines, key=lambda line: bool(line.negative_prompt)):
        some = list(group)
        yield from (some[i : i + size] for i in range(0, len(some), size))


class Folder:
    """The images of a file's lines, and their index; `done` are the lines whose images are there."""

    def __init__(self, path: Path, settings: Settings, lines: list[Line]):
        self.path, self.settings, self.lines = path, settings, lines
        self.index = path / "index.jsonl"
        path.mkdir(parents=True, exist_ok=True)
        self.done = {line for line in lines if self._is_drawn(line)}

    def left(self, size: int) -> list[list[Line]]:
        """The batches that are not all drawn. Lines are always batched alike: no image depends on where a run was interrupted."""
        return [some for some in batches(self.lines, size) if not self.done.issuperset(some)]

    def put(self, lines: list[Line], images: list[Image.Image]) -> int:
        """Write the images of those lines that are not done; returns how many that were."""
        missing = [(line, image) for line, image in zip(lines, images) if line not in self.done]
        for line, image in missing:
            text = PngInfo()
            for key, value in self._row(line).items():
                text.add_text(key, str(value))
            part = self._file(line).with_suffix(".part")
            image.save(part, "PNG", pnginfo=text)
            part.replace(self._file(line))  # at once: a file of that name is whole
            self.done.add(line)
            with self.index.open("a", encoding="utf-8") as index:
                index.write(self._listed(line))
        return len(missing)

    def write_index(self):
        """List the images that are there, in the order of the lines; meanwhile `put` adds what it writes."""
        part = self.index.with_suffix(".part")
        with part.open("w", encoding="utf-8") as index:
            for line in self.lines:
                if line in self.done:
                    index.write(self._listed(line))
        part.replace(self.index)

    def _is_drawn(self, line: Line) -> bool:
        try:
            with Image.open(self._file(line), formats=["PNG"]) as image:
                # Reads the whole file.
                return image.text == {key: str(value) for key, value in self._row(line).items()}
        except (OSError, SyntaxError, ValueError):  # missing or damaged
            return False

    def _listed(self, line: Line) -> str:
        row = {"file": self._file(line).name, "line": line.number, **self._row(line)}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def _file(self, line: Line) -> Path:
        return self.path / f"{line.number:06d}.png"

    def _row(self, line: Line) -> dict:
        """What an image is drawn from; stands in its file, too."""
        row = {"prompt": line.prompt, "negative_prompt": line.negative_prompt or None, "seed": line.seed, **vars(self.settings)}
        return {key: value for key, value in row.items() if value is not None}


def load(settings: Settings, device: torch.device | str = "cpu"):
    """The pipeline on its device and backend."""
    import diffusers
    import transformers

    from diffusers_oneflow import demo_model

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
    path = demo_model() if settings.model == "demo" else settings.model
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(path, dtype=getattr(torch, settings.dtype))
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device, backend=settings.backend)
    except (OSError, ValueError) as error:
        stop(f"{settings.model} on {settings.backend}: {str(error).strip().splitlines()[0]}")


def draw(pipe, lines: list[Line], settings: Settings) -> list[Image.Image]:
    """Draw one batch; each line has a generator of its own, so its noise does not depend on its neighbours."""
    arguments = {"guidance_scale": settings.guidance, "width": settings.size, "height": settings.size}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    if any(line.negative_prompt for line in lines):
        arguments["negative_prompt"] = [line.negative_prompt for line in lines]
    generators = [torch.Generator().manual_seed(line.seed) for line in lines]
    prompts = [line.prompt for line in lines]
    return pipe(prompts, num_inference_steps=settings.steps, generator=generators, **arguments).images


def stop(message: str, code: int = 2):
    """End with a sentence."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
