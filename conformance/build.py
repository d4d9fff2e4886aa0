"""Tiny models with random weights, and tokenizers made on the spot: nothing comes from a hub.

Every function takes what its config class takes, over small defaults; pipelines' own demands decide the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import diffusers
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

import diffusers_oneflow

# What makes a pipeline's parts, or the arguments of a call.
Maker = Callable[[], dict[str, Any]]
_Module = TypeVar("_Module", bound=torch.nn.Module)

PROMPT = "a large red circle left of a small blue star"
_WORDS = (
    *("a", "the", "large", "small", "red", "blue", "green", "circle", "star", "square", "left", "right", "of", "on"),
    *("black", "white", "background", "video", "sound"),
)
WIDTH = 32


def none(*names: str) -> dict[str, Any]:
    """Parts that a pipeline does without."""
    return dict.fromkeys(names)


@functools.cache
def tokenizer() -> transformers.CLIPTokenizer:
    """The CLIP tokenizer of the demo model."""
    return transformers.CLIPTokenizer.from_pretrained(diffusers_oneflow.demo_model(), subfolder="tokenizer")


def words(length: int = 64, numbered: bool = False, **options: Any) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of whole words that ends each text as T5's does; unknown words are <unk>."""
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    vocabulary = {word: i for i, word in enumerate([*special, *_WORDS])}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)])
    return (_Numbered if numbered else transformers.PreTrainedTokenizerFast)(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",
        model_max_length=length, **options,
    )  # fmt: skip


class _Numbered(transformers.PreTrainedTokenizerFast):  # type: ignore[misc]  # transformers is not followed
    """Says where each token stands, counted from the first that is no padding, as ChatGLM's does."""

    def __call__(self, *args: Any, **options: Any) -> transformers.BatchEncoding:
        made = super().__call__(*args, **options)
        made["position_ids"] = (made["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return made


VOCABULARY = 4 + len(_WORDS)


def clip_text(projected: bool = False, **options: Any) -> transformers.CLIPTextModel | transformers.CLIPTextModelWithProjection:
    """CLIP's text model, with its projection or not: hidden states of `WIDTH`."""
    known = tokenizer()
    config = transformers.CLIPTextConfig(**{
        "vocab_size": known.vocab_size, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "projection_dim": WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": known.model_max_length,
        "bos_token_id": known.bos_token_id, "eos_token_id": known.eos_token_id, "pad_token_id": known.pad_token_id, **options,
    })  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def clip_vision(
    projected: bool = True, **options: Any
) -> transformers.CLIPVisionModel | transformers.CLIPVisionModelWithProjection:
    """CLIP's image encoder, for images of 32x32."""
    config = transformers.CLIPVisionConfig(**{
        "hidden_size": WIDTH, "projection_dim": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "intermediate_size": 2 * WIDTH, "patch_size": 8, **options,
    })  # fmt: skip
    return (transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel)(config)


def clip_images(size: int = 32) -> transformers.CLIPImageProcessorPil:
    """The image processor for `clip_vision`."""
    return transformers.CLIPImageProcessorPil(crop_size={"height": size, "width": size}, size={"shortest_edge": size})


def t5(**options: Any) -> transformers.T5EncoderModel:
    """T5's encoder for `words`."""
    config = transformers.T5Config(**{
        "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", **options,
    })  # fmt: skip
    return transformers.T5EncoderModel(config)


def vae(channels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    """An image VAE that halves each side."""
    return diffusers.AutoencoderKL(**{
        "block_out_channels": (16, 32), "norm_num_groups": 4, "latent_channels": channels, "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **options,
    })  # fmt: skip


def vae8(channels: int = 4, **options: Any) -> diffusers.AutoencoderKL:
    """An image VAE at the usual factor of 8."""
    return vae(
        channels, block_out_channels=(8, 8, 16, 16), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, **options,
    )  # fmt: skip


def unet(**options: Any) -> diffusers.UNet2DConditionModel:
    """Stable Diffusion's UNet at latents of 16x16."""
    return diffusers.UNet2DConditionModel(**{
        "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": WIDTH, "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **options,
    })  # fmt: skip


def early_unet(**options: Any) -> diffusers.UNet2DConditionModel:
    """`unet` with its attention where the resolution is highest, as in Stable Diffusion."""
    return unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **options
    )


def xl_unet(**options: Any) -> diffusers.UNet2DConditionModel:
    """Stable Diffusion XL's UNet: two text encoders side by side, added time ids."""
    return unet(**{
        "cross_attention_dim": 2 * WIDTH, "attention_head_dim": (2, 4), "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH, **options,
    })  # fmt: skip


def control(unet: torch.nn.Module, cls: str = "ControlNetModel", **options: Any) -> torch.nn.Module:
    """A ControlNet for a UNet."""
    made: torch.nn.Module = getattr(diffusers, cls).from_unet(unet, **options)
    return stirred(made)


def stirred(module: _Module, scale: float = 0.02) -> _Module:
    """`module` with noise on its weights: what starts as zeros would prove nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def ddim(**options: Any) -> diffusers.DDIMScheduler:
    """The scheduler of Stable Diffusion."""
    return diffusers.DDIMScheduler(**{
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "set_alpha_to_one": False, "steps_offset": 1, **options,
    })  # fmt: skip


def flow_match(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """The scheduler of models that match a flow."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)
