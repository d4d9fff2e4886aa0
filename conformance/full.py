"""Stable Diffusion 1.5 at full size with random weights, component by component."""

import torch

from benchmarks import models
from diffusers_oneflow.parity import Report, component

from .registry import case


@case("sd15-unet", full=True)
def unet() -> Report:
    """The UNet of 860 million parameters, on latents of 32x32."""
    module = models.sd15_unet()
    return Report([component(module, *models.unet_inputs(module, 32), "unet")])


@case("sd15-vae", full=True)
def vae() -> Report:
    """The VAE's encoder and decoder, on images of 256x256."""
    module = models.sd15_vae()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 256, 256, generator=generator) * 2 - 1
    latents = torch.randn(1, 4, 32, 32, generator=generator)
    return Report(
        [component(module.encoder, (image,), {}, "vae.encoder"), component(module.decoder, (latents,), {}, "vae.decoder")]
    )


@case("sd15-text", full=True)
def text() -> Report:
    """The CLIP text encoder."""
    ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    return Report([component(models.sd15_text_encoder(), (ids,), {}, "text_encoder")])
