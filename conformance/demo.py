"""The demo model in the pipelines of Stable Diffusion."""

from typing import Any

import diffusers
import torch

import diffusers_oneflow
from diffusers_oneflow.parity import Report

from .draw import compare, picture
from .registry import case

PROMPT = "a large red circle left of a small blue star"


def demo() -> diffusers.StableDiffusionPipeline:
    """The embedded pipeline in float32."""
    return diffusers.StableDiffusionPipeline.from_pretrained(diffusers_oneflow.demo_model(), dtype=torch.float32)


def _parts(pipe: diffusers.DiffusionPipeline) -> dict[str, Any]:
    return {**pipe.components, "requires_safety_checker": False}


@case("demo-text2img")
def text2img() -> Report:
    """Text to image, with guidance."""
    return compare(demo(), PROMPT)


@case("demo-img2img")
def img2img() -> Report:
    """Image to image: the VAE's encoder is part of the run."""
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**_parts(demo()))
    return compare(pipe, PROMPT, image=picture(128), strength=1.0)


@case("demo-inpaint")
def inpaint() -> Report:
    """Inpainting on a UNet of four channels."""
    pipe = diffusers.StableDiffusionInpaintPipeline(**_parts(demo()))
    mask = picture(128, seed=1).convert("L").point(lambda v: 255 * (v > 128))
    return compare(pipe, PROMPT, image=picture(128), mask_image=mask, height=128, width=128, strength=1.0)


@case("demo-controlnet")
def controlnet() -> Report:
    """A ControlNet with random weights beside the UNet."""
    torch.manual_seed(0)
    pipe = demo()
    control = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_channels=3)
    with torch.no_grad():
        for parameter in control.parameters():  # a fresh one ends in zeros, and would prove nothing
            parameter.add_(0.01 * torch.randn_like(parameter))
    pipe = diffusers.StableDiffusionControlNetPipeline(**_parts(pipe), controlnet=control.eval())
    return compare(pipe, PROMPT, image=picture(128))


@case("demo-lora")
def lora() -> Report:
    """A LoRA adapter on the UNet's attention, not merged."""
    from peft import LoraConfig

    torch.manual_seed(0)
    pipe = demo()
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return compare(pipe, PROMPT)


@case("demo-lora-fused")
def lora_fused() -> Report:
    """The same adapter merged into the weights."""
    from peft import LoraConfig

    torch.manual_seed(0)
    pipe = demo()
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.unet.fuse_lora()
    return compare(pipe, PROMPT)


@case("demo-batch")
def batch() -> Report:
    """Two prompts at once, the VAE decoding slice by slice."""
    pipe = demo()
    pipe.vae.enable_slicing()
    return compare(pipe, [PROMPT, "a green heart on a black background"])
