"""Stable Diffusion 1.5 at full size with random weights, component by component."""

import torch

from benchmarks import models
from diffusers_oneflow.parity import Report

from .registry import case
from .tiny import Compare, bfloat16, component


def _unet(compare: Compare) -> Report:
    module = models.sd15_unet()
    return Report([compare(module, *models.unet_inputs(module, 32), "unet")])


def _vae(compare: Compare) -> Report:
    module, generator = models.sd15_vae(), torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 256, 256, generator=generator) * 2 - 1
    latents = torch.randn(1, 4, 32, 32, generator=generator)
    parts = ((module.encoder, image, "vae.encoder"), (module.decoder, latents, "vae.decoder"))
    return Report([compare(part, (given,), {}, path) for part, given, path in parts])


def _text(compare: Compare) -> Report:
    ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    return Report([compare(models.sd15_text_encoder(), (ids,), {}, "text_encoder")])


@case("sd15-unet", full=True, level="models")
def unet() -> Report:
    """The UNet of 860 million parameters, on latents of 32x32."""
    return _unet(component)


@case("sd15-vae", full=True, level="models")
def vae() -> Report:
    """The VAE's encoder and decoder, on images of 256x256."""
    return _vae(component)


@case("sd15-text", full=True, level="models")
def text() -> Report:
    """The CLIP text encoder."""
    return _text(component)


@case("sd15-unet-bf16", full=True, level="models")
def unet_bfloat16() -> Report:
    """The UNet in bfloat16."""
    return _unet(bfloat16)


@case("sd15-vae-bf16", full=True, level="models")
def vae_bfloat16() -> Report:
    """The VAE in bfloat16."""
    return _vae(bfloat16)


@case("sd15-text-bf16", full=True, level="models")
def text_bfloat16() -> Report:
    """The text encoder in bfloat16."""
    return _text(bfloat16)
