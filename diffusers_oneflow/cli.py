"""The command line: ``diffusers-oneflow generate | doctor | explain | parity | run | cache``."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .cache import Cache

app = typer.Typer(help="Run diffusers pipelines on OneFlow.", no_args_is_help=True, add_completion=False)

Model = Annotated[str | None, typer.Option(help="Folder or repository of a pipeline; by default the embedded demo model.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Size = Annotated[str | None, typer.Option(help="Width and height in pixels, as 512 or 768x512; by default the model's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(show: bool) -> None:
    if show:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def generate(
    prompt: str,
    model: Model = None,
    steps: Steps = 25,
    seed: Seed = 0,
    backend: Annotated[str, typer.Option(help="oneflow, torch, or another one that is installed.")] = "oneflow",
    size: Size = None,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 7.5,
    out: Annotated[Path, typer.Option(help="The image file to write.")] = Path("image.png"),
) -> None:
    """Draw one image from a prompt and write it to a file."""
    arguments = _size(size)
    _writable(out)
    pipe = _attached(_load(model), backend)
    start = time.perf_counter()
    image = _draw(pipe, prompt, steps, seed, guidance_scale=guidance, **arguments).images[0]
    seconds = time.perf_counter() - start
    try:
        image.save(out)
    except OSError as error:
        _stop(f"{out} could not be written: {error}")
    typer.echo(f"{out}: {image.width}x{image.height}, {steps} steps on {backend} in {seconds:.1f} s, compilation included")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, and which devices OneFlow can use and why not others; exit code 1 if it cannot run."""
    from rich.console import Console
    from rich.table import Table

    from .doctor import diagnose

    findings = diagnose()
    if as_json:
        typer.echo(json.dumps([vars(f) for f in findings], indent=2))
    else:
        table = Table(show_header=False)
        for finding in findings:
            table.add_row(finding.name, f"{finding.value}: {finding.problem}" if finding.problem else finding.value)
        Console().print(table)
    if any(f.problem for f in findings):
        raise typer.Exit(1)


@app.command()
def explain(
    model: Annotated[str | None, typer.Argument(help="Folder or repository; by default the demo model.")] = None,
    prompt: str = "a red circle",
    steps: Steps = 2,
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Draw once on OneFlow and show its graphs, what was fused, and what ran in torch; exit code 1 if anything did."""
    from dataclasses import asdict

    from .explain import explain as report_of

    arguments = _size(size)
    pipe = _attached(_load(model), "oneflow")
    _draw(pipe, prompt, steps, 0, output_type="np", **arguments)
    report = report_of(pipe, show=not as_json)
    if as_json:
        typer.echo(json.dumps({path: asdict(part) for path, part in report.items()}, indent=2))
    if report.fallbacks:
        raise typer.Exit(1)


@app.command()
def parity(
    model: Annotated[str | None, typer.Argument(help="Folder or repository; by default the demo model.")] = None,
    prompt: str = "a large red circle left of a small blue star",
    steps: Steps = 4,
    seed: Seed = 0,
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Compare OneFlow with torch, per component and for the whole image; exit code 1 if they are too far apart."""
    from . import parity as numbers
    from .errors import OneFlowError

    arguments = _size(size)

    def draw(pipe: Any) -> Any:
        return (_draw(pipe, prompt, steps, seed, output_type="np", **arguments).images * 255).round().astype("uint8")

    try:
        report = numbers.pipeline(_load(model), draw)
    except OneFlowError as error:
        _stop(str(error))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        report.print()
        for sentence in report.failures:
            typer.echo(sentence)
    if not report.passed:
        raise typer.Exit(1)


# What follows the script's name is the script's, options too.
@app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False, "ignore_unknown_options": True})
def run(context: typer.Context, script: Annotated[Path, typer.Argument(help="A Python script; its arguments follow.")]) -> None:
    """Run a script whose `import torch` gives OneFlow, while diffusers, transformers and accelerate keep torch."""
    import runpy

    from . import engine, mock

    if reason := engine.refusal():
        _stop(reason)
    if not script.is_file():
        _stop(f"there is no script {script}")
    # For processes that the script starts.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (mock.folder(), os.environ.get("PYTHONPATH"))))
    mock.start()
    sys.argv = [str(script), *context.args]
    sys.path[0] = str(script.resolve().parent)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Exception as error:
        _show(error, script)
        raise typer.Exit(1) from None


def _show(error: Exception, script: Path) -> None:
    """Print a traceback as Python does, from the script on."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != str(script):
        trace = trace.tb_next
    # A script that does not compile has no frame.
    traceback.print_exception(type(error), error, trace)


store = typer.Typer(help="Programs on disk, which spare new processes the capture of models.", no_args_is_help=True)
app.add_typer(store, name="cache")
Folder = Annotated[Path | None, typer.Option(help="The folder; by default the one that DIFFUSERS_ONEFLOW_CACHE names.")]


def _cache(folder: Path | None) -> Cache:
    from .cache import VARIABLE, Cache, directory

    place = directory(True if folder is None else folder)
    if place is None:
        _stop(f"there is no cache: the environment variable {VARIABLE} turns it off")
    return Cache(place)


@store.command()
def info(folder: Folder = None, as_json: AsJson = False) -> None:
    """Say where the cache is and how much it holds."""
    from rich.console import Console
    from rich.table import Table

    cache = _cache(folder)
    usage = cache.usage()
    found = {"folder": str(cache.folder), "programs": usage.programs, "bytes": usage.bytes, "most_bytes": cache.most_bytes}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(show_header=False)
    table.add_row("folder", str(cache.folder))
    table.add_row("programs", f"{usage.programs}, {usage.bytes / 2**20:.1f} MB of at most {cache.most_bytes / 2**20:.0f} MB")
    Console().print(table)


@store.command()
def clear(folder: Folder = None) -> None:
    """Remove all programs."""
    cache = _cache(folder)
    removed = cache.clear()
    typer.echo(f"{cache.folder}: {removed.programs} programs of {removed.bytes / 2**20:.1f} MB removed")


def _stop(message: str) -> NoReturn:
    typer.echo(f"diffusers-oneflow: {message}", err=True)
    raise typer.Exit(2)


def _size(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    width, _, height = text.lower().partition("x")
    if not width.isdecimal() or not (height or width).isdecimal():
        _stop(f"--size {text} is not of the form 512 or 768x512")
    return {"width": int(width), "height": int(height or width)}


def _writable(out: Path) -> None:
    """Find out before minutes of drawing whether an image can be written there; makes its folder."""
    from PIL import Image

    if out.is_dir():
        _stop(f"--out {out} is a folder: name a file in it")
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        _stop(f"--out {out} has no ending of an image format, such as .png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _stop(f"the folder of --out {out} cannot be made: {error.strerror}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        _stop(f"--out {out} cannot be written: no permission")


def _load(model: str | None) -> Any:
    """The pipeline of a folder or repository in float32 on the CPU, where OneFlow runs."""
    # transformers speaks of packages it does not find while it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    from diffusers import DiffusionPipeline

    from .demo import demo_model

    if model is not None and model.startswith(("/", ".", "~")) and not Path(model).exists():
        _stop(f"there is no folder {model}")
    if model is not None and Path(model).exists() and not (Path(model) / "model_index.json").is_file():
        _stop(f"{model} is no diffusers pipeline: it has no model_index.json")
    try:
        return DiffusionPipeline.from_pretrained(model or demo_model(), dtype=torch.float32)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        # A broken model_index.json raises any of them.
        said = str(error).strip().splitlines() or [type(error).__name__]
        _stop(f"{model or 'the demo model'} could not be loaded: {said[0]}")


def _attached(pipe: Any, backend: str) -> Any:
    from . import plugin
    from .errors import OneFlowError

    plugin.autoload()
    try:
        return pipe.to(backend=backend)
    except (ValueError, OneFlowError) as error:
        _stop(str(error))


def _draw(pipe: Any, prompt: str, steps: int, seed: int, **arguments: Any) -> Any:
    """Run a text-to-image pipeline, seeded."""
    import torch

    try:
        return pipe(prompt, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **arguments)
    except (TypeError, ValueError) as error:
        _stop(f"{type(pipe).__name__} cannot draw that: {error}")
