"""Autoencoders by themselves: a sample goes in, and what comes out is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from . import build, video_transformers
from .build import Maker
from .kandinsky import movq
from .pixart_sana_etc import dc
from .table import SIGNED, Entry, register
from .unconditional import vq


class Autoencoding(diffusers.DiffusionPipeline):  # type: ignore[misc]  # diffusers is not followed
    """Encodes and decodes a sample.

    Args:
        vae: any of diffusers' autoencoders.
    """

    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.register_modules(vae=vae)

    @torch.no_grad()
    def __call__(self, sample: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
        """What `sample` becomes; `options` go to the decoder."""
        code = self.vae.encode(sample)[0]
        code = code if isinstance(code, torch.Tensor) else code.mode()
        return (self.vae.decode(code, **options)[0],)


def image(size: int = 32) -> Maker:
    """A smooth random image (1, 3, size, size) in -1..1."""
    return lambda: {"sample": _smooth(1, 3, size, size)}


def frames(count: int, size: int = 16) -> Maker:
    """A smooth random video (1, 3, count, size, size) in -1..1."""
    return lambda: {"sample": _smooth(1, 3, count, size, size)}


def _smooth(*shape: int) -> torch.Tensor:
    wave = torch.randn(shape)
    for dim in range(2, len(shape)):
        wave = wave.cumsum(dim) / 2
    return torch.tanh(wave)


def _asymmetric() -> diffusers.AsymmetricAutoencoderKL:
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, down_block_out_channels=(16, 32), layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2, up_block_out_channels=(16, 32), layers_per_up_block=1, norm_num_groups=4,
    )  # fmt: skip


def _tiny() -> diffusers.AutoencoderTiny:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )  # fmt: skip


def _temporal() -> diffusers.AutoencoderKLTemporalDecoder:
    return diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2)


def _cosmos() -> diffusers.AutoencoderKLCosmos:
    """The VAE of Cosmos: wavelets around convolutions of videos."""
    return diffusers.AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,), resolution=64, num_layers=1,
    )  # fmt: skip


def oobleck() -> diffusers.AutoencoderOobleck:
    """The VAE of Stable Audio: waves."""
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3, audio_channels=2,
        channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip


def flux2() -> diffusers.AutoencoderKLFlux2:
    """The VAE of Flux 2, whose latents are normed by a batch norm."""
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip


def _hunyuan_image() -> diffusers.AutoencoderKLHunyuanImage:
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(32, 64), layers_per_block=1,
        spatial_compression_ratio=2, sample_size=32,
    )  # fmt: skip


def _hunyuan15() -> diffusers.AutoencoderKLHunyuanVideo15:
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(32, 32, 32, 32), layers_per_block=1, spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )  # fmt: skip


def qwen() -> diffusers.AutoencoderKLQwenImage:
    """The VAE of Qwen-Image: one of videos, for one frame."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def _entry(name: str, make: Callable[[], torch.nn.Module], inputs: Maker, **options: Any) -> Entry:
    def parts() -> dict[str, Any]:
        return {"vae": make()}

    return Entry("Autoencoding", parts, inputs, name, name, values=SIGNED, module=__name__, **options)


ENTRIES = [
    _entry("AutoencoderKL", build.vae, image()),
    _entry("AutoencoderTiny", _tiny, image()),
    _entry("AsymmetricAutoencoderKL", _asymmetric, image()),
    _entry("AutoencoderDC", dc, image()),
    _entry("VQModel", vq, image()),
    _entry("VQModel-spatial", movq, image(64)),
    _entry("AutoencoderKLWan", lambda: video_transformers.wan()["vae"], frames(9), fallbacks=video_transformers.WAN),
    _entry("AutoencoderKLQwenImage", qwen, frames(1), fallbacks=video_transformers.WAN),
    _entry("AutoencoderKLFlux2", flux2, image()),
    _entry("AutoencoderKLHunyuanImage", _hunyuan_image, image()),
    _entry("AutoencoderKLTemporalDecoder", _temporal, lambda: {"sample": _smooth(4, 3, 32, 32), "num_frames": 4}),
    _entry("AutoencoderKLCogVideoX", lambda: video_transformers.cogvideo()["vae"], frames(9)),
    _entry("AutoencoderKLLTXVideo", lambda: video_transformers.ltx()["vae"], frames(9, 32)),
    _entry("AutoencoderKLMochi", lambda: video_transformers.mochi()["vae"], frames(7)),
    _entry("AutoencoderKLHunyuanVideo", lambda: video_transformers.hunyuan()["vae"], frames(9)),
    _entry("AutoencoderKLHunyuanVideo15", _hunyuan15, frames(9)),
    _entry("AutoencoderKLAllegro", video_transformers.allegro_vae, frames(24, 64)),
    _entry("AutoencoderKLCosmos", _cosmos, frames(9, 32)),
    _entry("AutoencoderOobleck", oobleck, lambda: {"sample": _smooth(1, 2, 64)}),
]  # fmt: skip

register(ENTRIES)
