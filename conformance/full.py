"""Stable Diffusion 1.5 at full size with random weights, component by component."""

import torch

from benchmarks import models
from diffusers_oneflow import signature
from diffusers_oneflow.parity import Component, Report, component

from .registry import case


def _bfloat16(module: torch.nn.Module, args: tuple, kwargs: dict, path: str) -> Component:
    """Compare a module and its inputs, cast to bfloat16."""
    flat = signature.flatten((args, kwargs))
    cast = [t.to(torch.bfloat16) if t.is_floating_point() else t for t in flat.tensors]
    return component(module.to(torch.bfloat16), *signature.rebuild(flat.spec, cast), path)


@case("sd15-unet", full=True)
def unet() -> Report:
    """The UNet of 860 million parameters, on latents of 32x32."""
    module = models.sd15_unet()
    return Report([component(module, *models.unet_inputs(module, 32), "unet")])


@case("sd15-vae", full=True)
def vae() -> Report:
    """The VAE's encoder and decoder, on images of 256x256."""
    module = models.sd15_vae()
    image, latents = _vae_inputs()
    return Report(
        [component(module.encoder, (image,), {}, "vae.encoder"), component(module.decoder, (latents,), {}, "vae.decoder")]
    )


def _vae_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 256, 256, generator=generator) * 2 - 1, torch.randn(1, 4, 32, 32, generator=generator)


@case("sd15-text", full=True)
def text() -> Report:
    """The CLIP text encoder."""
    return Report([component(models.sd15_text_encoder(), (_ids(),), {}, "text_encoder")])


def _ids() -> torch.Tensor:
    return torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))


@case("sd15-unet-bf16", full=True)
def unet_bfloat16() -> Report:
    """The UNet in bfloat16."""
    module = models.sd15_unet()
    return Report([_bfloat16(module, *models.unet_inputs(module, 32), "unet")])


@case("sd15-vae-bf16", full=True)
def vae_bfloat16() -> Report:
    """The VAE in bfloat16."""
    module, (image, latents) = models.sd15_vae(), _vae_inputs()
    return Report(
        [_bfloat16(module.encoder, (image,), {}, "vae.encoder"), _bfloat16(module.decoder, (latents,), {}, "vae.decoder")]
    )


@case("sd15-text-bf16", full=True)
def text_bfloat16() -> Report:
    """The text encoder in bfloat16."""
    return Report([_bfloat16(models.sd15_text_encoder(), (_ids(),), {}, "text_encoder")])
