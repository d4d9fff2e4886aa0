"""The parts of the demo pipeline: stock diffusers and transformers classes, small sizes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import torch

from .scenes import IMAGE_SIZE
from .tokenizer import END, MAX_LENGTH, START, build_vocabulary, write_tokenizer

LATENT_CHANNELS = 4
TEXT_WIDTH = 160
# Latents leave the VAE with zero mean and this spread in each channel; a power of
# two, so that the folding in of the scale is exact in float16.
LATENT_STD = 4.0

VAE_CONFIG: dict[str, Any] = {
    "sample_size": IMAGE_SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (32, 64, 96, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 1 / LATENT_STD,
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": IMAGE_SIZE // 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (96, 128, 160),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": (3, 4, 5),  # diffusers reads these as numbers of heads
}
# Zero terminal SNR and trailing steps: without them the first step leaks the mean
# of the noise, and uniform backgrounds come out greyish.
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


@dataclass
class Parts:
    """The trained parts: an AutoencoderKL, a CLIPTextModel and a UNet2DConditionModel."""

    vae: Any
    text_encoder: Any
    unet: Any


def text_config(vocabulary: dict[str, int]) -> Any:
    """Return the CLIPTextConfig of the text encoder."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=5,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
    )


def build_parts(seed: int = 0) -> Parts:
    """Return the parts with fresh float32 weights on the CPU."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    return Parts(
        vae=AutoencoderKL(**VAE_CONFIG),
        text_encoder=CLIPTextModel(text_config(build_vocabulary()[0])),
        unet=UNet2DConditionModel(**UNET_CONFIG),
    )


def build_scheduler() -> Any:
    """Return the DDIMScheduler that the pipeline is saved with."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER_CONFIG)


@torch.no_grad()
def fold_latents(vae: torch.nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Shift and scale the VAE's latents to zero mean and LATENT_STD, in place.

    mean and std [LATENT_CHANNELS] float are those of its present latents.  The 1x1
    convolutions around the latents take the change up, so images stay the same.
    """
    scale = LATENT_STD / std
    enter: Any = vae.quant_conv
    leave: Any = vae.post_quant_conv
    c = LATENT_CHANNELS
    enter.weight[:c] *= scale[:, None, None, None]
    enter.bias[:c] = (enter.bias[:c] - mean) * scale
    enter.bias[c:] += 2 * scale.log()  # the second half is log variance
    leave.bias += (leave.weight[:, :, 0, 0] * mean).sum(1)
    leave.weight /= scale[None, :, None, None]


def save_pipeline(parts: Parts, folder: str) -> None:
    """Write a complete StableDiffusionPipeline with float16 weights into `folder`.

    The parts are left as they are.
    """
    import copy

    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    write_tokenizer(os.path.join(folder, "tokenizer"))
    half = [
        copy.deepcopy(part).float().cpu().half().to(memory_format=torch.contiguous_format)
        for part in (parts.vae, parts.text_encoder, parts.unet)
    ]
    pipe = StableDiffusionPipeline(
        vae=half[0],
        text_encoder=half[1],
        tokenizer=CLIPTokenizer.from_pretrained(os.path.join(folder, "tokenizer")),
        unet=half[2],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    # transformers replaces vocab.json and merges.txt by a format of its own; put
    # back the files that every version reads, and nothing else.
    tokenizer = os.path.join(folder, "tokenizer")
    for name in os.listdir(tokenizer):
        os.remove(os.path.join(tokenizer, name))
    write_tokenizer(tokenizer)
    # Without a dtype asked for, diffusers loads its parts in float32 but
    # transformers follows this entry, and the two would not fit together.
    config_path = os.path.join(folder, "text_encoder", "config.json")
    with open(config_path, encoding="utf-8") as f:
        config = json.load(f)
    config["dtype"] = "float32"
    with open(config_path, "w", encoding="utf-8") as f:
        f.write(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for root, _, names in os.walk(folder):
        for name in names:  # safetensors makes files that only their owner can read
            os.chmod(os.path.join(root, name), 0o644)
