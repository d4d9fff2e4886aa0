"""Stable Diffusion XL and Kolors."""

from typing import Any

import diffusers
import torch

from . import build
from .draw import picture
from .stable_diffusion import IMAGE, INPAINT, TEXT, image_encoder
from .table import Entry, register


def parts(**changes: Any) -> dict[str, Any]:
    """What StableDiffusionXLPipeline is made of."""
    made = {
        "unet": None, "vae": None, "text_encoder": build.clip_text(), "text_encoder_2": build.clip_text(projected=True),
        "tokenizer": build.tokenizer(), "tokenizer_2": build.tokenizer(),
        "scheduler": diffusers.EulerDiscreteScheduler(), "force_zeros_for_empty_prompt": True, **changes,
    }  # fmt: skip
    made["unet"] = made["unet"] or build.xl_unet()
    made["vae"] = made["vae"] or build.vae()
    return made


def refiner(**changes: Any) -> dict[str, Any]:
    """The refiner: the second text encoder alone, an aesthetic score."""
    unet = build.xl_unet(cross_attention_dim=build.WIDTH, projection_class_embeddings_input_dim=5 * 8 + build.WIDTH)
    return parts(unet=unet, requires_aesthetics_score=True, text_encoder=None, tokenizer=None, **changes)


def kolors(**changes: Any) -> dict[str, Any]:
    """Kolors: the text encoder is ChatGLM, which diffusers brings along."""
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    config = ChatGLMConfig(
        num_layers=2, padded_vocab_size=build.VOCABULARY, hidden_size=8, ffn_hidden_size=16, kv_channels=4,
        num_attention_heads=2, seq_length=16, layernorm_epsilon=1e-5, rmsnorm=True, add_qkv_bias=True,
        apply_residual_connection_post_layernorm=False, multi_query_attention=True, multi_query_group_num=1, rope_ratio=1,
        post_layer_norm=True, bias_dropout_fusion=True, quantization_bit=0, pre_seq_len=None, prefix_projection=False,
        original_rope=True,
    )  # fmt: skip
    text = ChatGLMModel(config)
    for name, parameter in text.named_parameters():
        # It leaves its norms as the memory was.
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.1)
    unet = build.xl_unet(
        encoder_hid_dim=8, encoder_hid_dim_type="text_proj", cross_attention_dim=16,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    )  # fmt: skip
    return {
        "unet": unet, "vae": build.vae(), "text_encoder": text,
        "tokenizer": build.words(256, numbered=True, padding_side="left", model_input_names=["input_ids", "attention_mask"]),
        "scheduler": diffusers.EulerDiscreteScheduler(), **changes,
    }  # fmt: skip


# ChatGLM looks whether its mask holds a zero.
DATA_DEPENDENT = {"text_encoder": "data-dependent"}

ENTRIES = [
    Entry("StableDiffusionXLPipeline", parts, TEXT, "two text encoders, added time ids"),
    Entry("StableDiffusionXLPipeline",
          lambda: parts(unet=build.xl_unet(time_cond_proj_dim=32), scheduler=diffusers.LCMScheduler()),
          TEXT, "a guidance embedding and the LCM scheduler", "lcm"),
    Entry("StableDiffusionXLImg2ImgPipeline", parts, IMAGE),
    Entry("StableDiffusionXLImg2ImgPipeline", refiner, {**IMAGE, "prompt_2": IMAGE["prompt"]}, "the refiner", "refiner"),
    Entry("StableDiffusionXLInpaintPipeline", parts, INPAINT, "on a UNet of four channels"),
    Entry("StableDiffusionXLInpaintPipeline", lambda: parts(unet=build.xl_unet(in_channels=9), **image_encoder()), INPAINT,
          "on nine channels", "nine", idle=("image_encoder",)),
    Entry("StableDiffusionXLInstructPix2PixPipeline", lambda: parts(unet=build.xl_unet(in_channels=8)),
          {**TEXT, "image": picture(32), "image_guidance_scale": 1.5}),
    Entry("KolorsPipeline", kolors, {**TEXT, "max_sequence_length": 16}, fallbacks=DATA_DEPENDENT,
          module="diffusers.pipelines.kolors.pipeline_kolors"),
    Entry("KolorsImg2ImgPipeline", kolors, {**IMAGE, "max_sequence_length": 16},
          fallbacks=DATA_DEPENDENT, module="diffusers.pipelines.kolors.pipeline_kolors_img2img"),
]  # fmt: skip

register(ENTRIES)
