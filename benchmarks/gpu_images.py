"""Whether what a GPU draws through OneFlow in a half type is as good as torch's: the demo pipeline, judged by its detector.

python -m benchmarks.gpu_images --captions 200 --out benchmarks/results
"""

import argparse
import math
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

import diffusers_oneflow
from diffusers_oneflow.demo import evaluate
from diffusers_oneflow.demo.detector import judge
from diffusers_oneflow.demo.request import parse

from . import common, models  # noqa: F401 (it silences the libraries)
from .gpu_device import Cpu, Gpu
from .gpu_peers import CONFIG, built

# Decibels that the median may lie below torch's own; and what identical images count as.
BELOW, IDENTICAL = 1.0, 100.0


def pipeline(peer: str, dtype: torch.dtype, device: torch.device) -> StableDiffusionPipeline:
    """The demo pipeline on "torch" or "oneflow"."""
    pipe = StableDiffusionPipeline.from_pretrained(diffusers_oneflow.demo_model(), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if peer == "oneflow":
        return pipe.to(device, dtype, backend="oneflow", backend_config=CONFIG)
    return pipe.to(device, dtype)


def draw(pipe: StableDiffusionPipeline, cases: list[evaluate.Case], steps: int, batch: int) -> NDArray[np.uint8]:
    """The images of the cases, uint8 (n, h, w, 3); the noise of each is that of its seed, the same numbers in every dtype."""
    images = []
    side = pipe.unet.config.sample_size
    for first in range(0, len(cases), batch):
        part = cases[first : first + batch]
        generators = [torch.Generator().manual_seed(case.seed) for case in part]
        noise = torch.stack([torch.randn(pipe.unet.config.in_channels, side, side, generator=g) for g in generators])
        made = pipe(
            [case.caption for case in part], num_inference_steps=steps, guidance_scale=7.5, output_type="np",
            latents=noise.to(pipe.device, pipe.dtype),
        )  # fmt: skip
        images.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(images)


def decibels(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> list[float]:
    """Peak signal-to-noise ratio of each image, at most `IDENTICAL`."""
    off = (images.astype(np.float64) - reference.astype(np.float64)) ** 2
    squares = off.reshape(len(images), -1).mean(1)
    return [min(IDENTICAL, 10 * math.log10(255**2 / s)) if s else IDENTICAL for s in squares]


def measure(device: Gpu | Cpu, dtype: torch.dtype, cases: list[evaluate.Case], steps: int, batch: int) -> dict[str, Any]:
    """By peer: seconds, which captions the detector found drawn in full, and decibels against torch in float32."""
    # The reference is float32, not TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    half = str(dtype).removeprefix("torch.")
    peers = {"torch float32": ("torch", torch.float32), f"torch {half}": ("torch", dtype), f"oneflow {half}": ("oneflow", dtype)}
    found, reference = {}, None
    for name, (peer, kind) in peers.items():
        pipe = pipeline(peer, kind, device.place)
        start = time.perf_counter()
        images = draw(pipe, cases, steps, batch)
        seconds = time.perf_counter() - start
        reference = images if reference is None else reference
        met = [bool(judge(image, parse(case.caption)).all) for image, case in zip(images, cases)]
        found[name] = {"seconds": seconds, "met": met, "score": sum(met) / len(met), "decibels": decibels(images, reference)}
        if peer == "oneflow":
            found[name]["built"] = {part: built(getattr(pipe, part)) for part in ("text_encoder", "unet", "vae")}
        del pipe
        device.rest()
    return found


def judged(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Print and return the bars: the same score within sampling, and the median decibels."""
    _, stock, ours = found.values()
    # Captions that one drew and the other did not: were both as good, each would win as often (two standard deviations).
    lost = sum(a and not b for a, b in zip(stock["met"], ours["met"]))
    won = sum(b and not a for a, b in zip(stock["met"], ours["met"]))
    most = 2 * math.sqrt(lost + won)
    worse = statistics.median(stock["decibels"]) - statistics.median(ours["decibels"])
    bars = {
        f"captions that only torch drew ({lost}) less those that only OneFlow drew ({won})": (float(lost - won), most, ""),
        "median decibels below torch's own": (worse, BELOW, " dB"),
    }
    return [
        {"bar": name, "limit": most, "value": value, "passed": common.verdict(name, value, most, unit)}
        for name, (value, most, unit) in bars.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_images", description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=200, help="of 200")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--out", help="folder or .json file")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU that torch can use here", file=sys.stderr)
        return 2
    device = Cpu() if options.device == "cpu" else Gpu()
    command = " ".join(["python -m benchmarks.gpu_images", *(sys.argv[1:] if argv is None else argv)])
    report: dict[str, Any] = {"command": command, "gpu": device.describe(), "options": vars(options), "machine": common.machine()}
    cases = evaluate.read_cases()[: options.captions]
    found = measure(device, getattr(torch, options.dtype), cases, options.steps, options.batch)
    rows = [
        (name, f"{p['seconds']:.1f}", f"{p['score']:.1%}", f"{statistics.median(p['decibels']):.1f}", f"{min(p['decibels']):.1f}")
        for name, p in found.items()
    ]
    title = f"demo pipeline, {len(cases)} captions, {options.steps} steps, {report['gpu']['name']}"
    common.table(
        title,
        ("peer", "seconds", "drawn in full", "median dB", "least dB"),
        rows,
        "seconds: all of them, compiling too; dB: PSNR against torch float32",
    )
    bars = judged(found)
    common.write(f"gpu-images-{options.dtype}", {**report, "peers": found, "bars": bars}, options.out)
    return 0 if all(bar["passed"] for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
