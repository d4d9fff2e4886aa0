"""Train the demo model: `python -m diffusers_oneflow.demo.train --minutes 9 --out FOLDER`.

Everything is drawn on the device; no data are read.  The run stops by the clock:
the learning rates follow the elapsed share of the time, so that any length ends
with a finished model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch

from .diffusion import train_diffusion
from .model import build_parts, save_pipeline
from .vae import train_vae

SAVE_SECONDS = 10.0  # kept free at the end, to write the files
VAE_SHARE = 0.33  # of the rest


def main(arguments: list[str] | None = None) -> None:
    """Run the training from the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True, help="folder for the model; made if needed")
    p.add_argument("--minutes", type=float, default=9.0, help="wall time in all")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--vae-batch", type=int, default=64)
    p.add_argument("--batch", type=int, default=1024)
    p.add_argument("--pool", type=int, default=1 << 20, help="scenes with latents kept at a time")
    p.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    p.add_argument("--compile-only", action="store_true", help="fill the compiler's cache")
    args = p.parse_args(arguments)

    start = time.monotonic()
    compiled = not args.no_compile and args.device != "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    generator = torch.Generator(args.device).manual_seed(args.seed)
    parts = build_parts(args.seed)
    if args.compile_only:
        parts.vae.to(args.device, memory_format=torch.channels_last)
        train_diffusion(parts, generator, 600, args.batch, args.batch, True, save=lambda: None, most_steps=1)
        return
    helper = _compile_ahead(args) if compiled else None
    budget = args.minutes * 60 - SAVE_SECONDS

    def save() -> None:
        save_pipeline(parts, args.out)

    numbers = {"seed": args.seed, "batch": args.batch, "vae_batch": args.vae_batch}
    numbers["vae"] = train_vae(parts.vae, generator, VAE_SHARE * budget, args.vae_batch, compiled)
    print(json.dumps(numbers["vae"]), flush=True)
    save()
    if helper is not None:
        print(f"compiled ahead: {helper.wait()}", flush=True)
    left = budget - (time.monotonic() - start)
    numbers["diffusion"] = train_diffusion(parts, generator, left, args.batch, args.pool, compiled, save)
    save()
    numbers["seconds"] = time.monotonic() - start
    if args.device == "cuda":
        numbers["device"] = torch.cuda.get_device_name()
        numbers["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    text = json.dumps(numbers, indent=2)
    print(text, flush=True)
    with open(os.path.join(args.out, "training.json"), "w", encoding="utf-8") as f:
        f.write(text + "\n")


def _compile_ahead(args: argparse.Namespace) -> subprocess.Popen[Any]:
    """Start a process that compiles the UNet's step while the VAE trains.

    It leaves the result in the compiler's cache on disk, which spares this process
    about a minute.
    """
    command = [sys.executable, "-m", __spec__.name, "--compile-only", "--out", args.out]
    command += ["--device", args.device, "--batch", str(args.batch)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
