"""Whole images on a GPU: Stable Diffusion 1.5 at full size with random weights, its peers by turns in one process."""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline

from . import common, gpu_cases
from .gpu_device import Device
from .gpu_peers import COMPILED, CONFIG, built, marked, sharing
from .gpu_steps import Say, failing

CASE = "sd15-e2e"
PEERS = ("oneflow", "torch", *COMPILED)
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# As Stable Diffusion 1.5 is usually run with each of them.
SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "pndm": lambda: diffusers.PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**_NOISE, steps_offset=1),
}


@torch.no_grad()
def measure(options: dict[str, Any], device: Device, say: Say = lambda report: None) -> dict[str, Any]:
    """Seconds of an image, or of a batch of them, by peer, number of steps and kind of output.

    Args:
        options: dtype (None: float16), peers, steps, outputs, batch (images), scheduler, repeats, tiny.
        say: called with the report whenever there is more in it.
    """
    dtype, tiny, batch = getattr(torch, options["dtype"] or "float16"), options["tiny"], options["batch"]
    names = {"unet": "sd15-unet", "vae": "vae-512", "text_encoder": "text-encoder"}
    cases = {part: gpu_cases.CASES[name] for part, name in names.items()}
    parts = {part: gpu_cases.create(case, device.place, dtype, tiny) for part, case in cases.items()}
    # The tokens of the prompt, and of the empty one: texts would need a tokenizer.
    ids = gpu_cases.inputs(cases["text_encoder"], parts["text_encoder"], tiny, 2, device.place, dtype)["input_ids"]
    report: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "weight_bytes": sum(p.nbytes for part in parts.values() for p in part.parameters()),
        "peers": {peer: {} for peer in options["peers"] if peer in PEERS},
    }
    calls: dict[str, Callable[..., Any]] = {}
    images: dict[str, torch.Tensor] = {}
    for peer, result in report["peers"].items():
        with failing(result):
            before = device.memory()
            start = time.perf_counter()
            pipe = pipeline(peer, {part: sharing(module) for part, module in parts.items()}, options["scheduler"], device, dtype)
            calls[peer] = call = _call(pipe, ids, batch, device)
            made = call(min(options["steps"]), "pt")
            device.synchronize()
            result["first_seconds"] = time.perf_counter() - start
            print(f"{peer}: first image after {result['first_seconds']:.1f} s", flush=True)
            call(min(options["steps"]), "pt")  # torch.compile has recorded its graphs then
            result["peak"] = asdict(device.peak(functools.partial(call, min(options["steps"]), "pt")) - before)
            images[peer] = made.double()
            result["finite"] = bool(made.isfinite().all())
            if peer == "oneflow":
                result["built"] = {part: built(getattr(pipe, part)) for part in ("unet", "vae")}
        result["seconds"], result["median_seconds"] = {}, {}
        say(report)
    for peer, made in images.items():  # of images in 0..1
        base = images.get("torch", next(iter(images.values())))
        report["peers"][peer]["difference"] = (made - base).abs().mean().item()
    for steps in options["steps"]:
        for output in options["outputs"]:
            turns: dict[str, Callable[[], float]] = {
                peer: functools.partial(_seconds, call, steps, output, device) for peer, call in calls.items()
            }
            for peer, values in (common.interleave(turns, options["repeats"]) if turns else {}).items():
                report["peers"][peer]["seconds"][f"{steps}-{output}"] = values
                report["peers"][peer]["median_seconds"][f"{steps}-{output}"] = common.summarize(values)
            say(report)
    return report


def pipeline(peer: str, parts: dict[str, Any], scheduler: str, device: Device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """A stock pipeline of these models, as `peer` runs them."""
    pipe = StableDiffusionPipeline(
        **parts, tokenizer=None, scheduler=SCHEDULERS[scheduler](), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    if peer == "oneflow":
        return pipe.to(device.place, dtype, backend="oneflow", backend_config=CONFIG)
    if peer in COMPILED:
        pipe.unet.forward = marked(device.compiled(pipe.unet.forward, peer))
        pipe.vae.decode = marked(device.compiled(pipe.vae.decode, peer))
    return pipe.to(device.place, dtype)


def _call(pipe: StableDiffusionPipeline, ids: torch.Tensor, batch: int, device: Device) -> Callable[..., Any]:
    """The text encoder and the pipeline, which draws 512x512 pixels: called with (steps, output type)."""
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor

    def call(steps: int, output: str) -> Any:
        with torch.no_grad():
            prompt, negative = pipe.text_encoder(ids)[0].chunk(2)
        made = pipe(
            prompt_embeds=prompt, negative_prompt_embeds=negative, num_images_per_prompt=batch, num_inference_steps=steps,
            height=size, width=size, generator=torch.Generator(device.place).manual_seed(0), output_type=output,
        )  # fmt: skip
        return made.images

    return call


def _seconds(call: Callable[..., Any], steps: int, output: str, device: Device) -> float:
    device.synchronize()
    start = time.perf_counter()
    call(steps, output)
    device.synchronize()
    return time.perf_counter() - start
