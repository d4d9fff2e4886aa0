"""Stable Cascade and Würstchen: a prior on very small latents, a decoder, and a VQGAN."""

from typing import Any

import diffusers
import torch

from . import build
from .build import PROMPT, WIDTH
from .table import LATENT, Entry, register


def vqgan() -> torch.nn.Module:
    """Paella's VQGAN."""
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    made: torch.nn.Module = PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=16, levels=2)
    return made


CASCADE = {
    "timestep_ratio_embedding_dim": 16, "patch_size": 1, "conditioning_dim": WIDTH, "block_out_channels": (16, 32),
    "num_attention_heads": (2, 4), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
    "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1), "clip_text_pooled_in_channels": WIDTH,
}  # fmt: skip


def text() -> dict[str, Any]:
    """The text encoder and its tokenizer."""
    return {"text_encoder": build.clip_text(projected=True), "tokenizer": build.tokenizer()}


def prior() -> dict[str, Any]:
    """What StableCascadePriorPipeline is made of."""
    net = diffusers.models.StableCascadeUNet(
        **CASCADE, in_channels=4, out_channels=4, switch_level=(False,), clip_image_in_channels=WIDTH, clip_text_in_channels=WIDTH
    )
    return {
        "prior": build.stirred(net), **text(), "scheduler": diffusers.DDPMWuerstchenScheduler(),
        **build.none("feature_extractor", "image_encoder"),
    }  # fmt: skip


def decoder() -> dict[str, Any]:
    """What StableCascadeDecoderPipeline is made of."""
    blocks = (
        ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
    )
    net = diffusers.models.StableCascadeUNet(
        **{**CASCADE, "num_attention_heads": (0, 4), "timestep_conditioning_type": ("sca",)}, in_channels=4, out_channels=4,
        effnet_in_channels=4, pixel_mapper_in_channels=3, block_types_per_layer=blocks,
    )  # fmt: skip
    return {
        "decoder": build.stirred(net), **text(), "scheduler": diffusers.DDPMWuerstchenScheduler(), "vqgan": vqgan(),
        "latent_dim_scale": 4.0,
    }  # fmt: skip


def _combined() -> dict[str, Any]:
    made = {**decoder(), **{f"prior_{name}": part for name, part in prior().items()}}
    return {name: part for name, part in made.items() if name != "latent_dim_scale"}


def _wuerstchen_prior(channels: int = 2) -> dict[str, Any]:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior

    net = WuerstchenPrior(c_in=channels, c=8, depth=2, c_cond=WIDTH, c_r=8, nhead=2)
    net = build.stirred(net)
    # It gives (x - a) / |1 - b|: far from a division by zero, at which any rounding would be magnified.
    with torch.no_grad():
        net.out[1].bias[channels:] -= 1
    return {
        "prior": net, "text_encoder": build.clip_text(), "tokenizer": build.tokenizer(),
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
    }  # fmt: skip


def _wuerstchen() -> dict[str, Any]:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt

    net = WuerstchenDiffNeXt(
        c_cond=WIDTH,
        c_hidden=[16, 32],
        nhead=[-1, 4],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        effnet_embd=4,
        inject_effnet=[False, True],
        clip_embd=WIDTH,
    )
    return {
        "decoder": build.stirred(net), "text_encoder": build.clip_text(), "tokenizer": build.tokenizer(), "vqgan": vqgan(),
        "scheduler": diffusers.DDPMWuerstchenScheduler(), "latent_dim_scale": 4.0,
    }  # fmt: skip


def _wuerstchen_combined() -> dict[str, Any]:
    made = {**_wuerstchen(), **{f"prior_{name}": part for name, part in _wuerstchen_prior(4).items()}}
    return {name: part for name, part in made.items() if name != "latent_dim_scale"}


def _latents() -> dict[str, Any]:
    return {"prompt": PROMPT, "image_embeddings": torch.randn(1, 4, 4, 4), "guidance_scale": 2.0}


IDLE = ("vqgan.down_blocks",)

ENTRIES = [
    Entry("StableCascadePriorPipeline", prior, {"prompt": PROMPT, "height": 128, "width": 128, "output_type": "np"},
          values=LATENT),
    Entry("StableCascadeDecoderPipeline", decoder, _latents, idle=IDLE),
    Entry("StableCascadeCombinedPipeline", _combined,
          {"prompt": PROMPT, "height": 128, "width": 128, "prior_num_inference_steps": 2}, idle=(*IDLE, "text_encoder")),
    Entry("WuerstchenPriorPipeline", _wuerstchen_prior, {"prompt": PROMPT, "height": 128, "width": 128, "output_type": "np"},
          values=(-4.0, 4.0)),
    Entry("WuerstchenDecoderPipeline", _wuerstchen, _latents, idle=IDLE),
    Entry("WuerstchenCombinedPipeline", _wuerstchen_combined,
          {"prompt": PROMPT, "height": 128, "width": 128, "prior_num_inference_steps": 2}, idle=IDLE),
]  # fmt: skip

register(ENTRIES)
