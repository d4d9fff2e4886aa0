"""Qwen-Image, and Flux 2 as small: a language model reads the prompt."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

from . import build
from . import stable_diffusion as sd
from .autoencoders import flux2, qwen
from .build import VOCABULARY, WIDTH
from .draw import picture
from .table import Entry, register
from .video_transformers import STATEFUL, WAN

TEXT = {**sd.TEXT, "negative_prompt": "blue", "true_cfg_scale": 2.0, "max_sequence_length": 16}
IMAGE = {**TEXT, "image": picture(32), "strength": 1.0}
SIZES = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 4, 4),
}  # fmt: skip
SHIFT = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0,
    "shift_terminal": 0.02, "use_dynamic_shifting": True,
}  # fmt: skip


def qwen_vl() -> torch.nn.Module:
    """Qwen 2.5 VL, for `build.words`."""
    rope = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": rope, "rope_theta": 1000000.0, "use_cache": False,
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3,
        },
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH},
        vision_start_token_id=4, vision_end_token_id=5, vision_token_id=6, image_token_id=7, video_token_id=8,
    )  # fmt: skip
    made: torch.nn.Module = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return made


def qwen3(cls: Callable[..., torch.nn.Module] = transformers.Qwen3Model) -> torch.nn.Module:
    """Qwen 3, for `build.words`."""
    return cls(transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=3, use_cache=False,
    ))  # fmt: skip


def parts(**changes: Any) -> dict[str, Any]:
    """What QwenImagePipeline is made of."""
    return {
        "transformer": build.stirred(diffusers.QwenImageTransformer2DModel(**SIZES)), "vae": qwen(), "text_encoder": qwen_vl(),
        "tokenizer": build.words(256), "scheduler": build.flow_match(**SHIFT), **changes,
    }  # fmt: skip


def _controlled() -> dict[str, Any]:
    net = diffusers.QwenImageControlNetModel(**{**SIZES, "num_layers": 1})
    return parts(controlnet=build.stirred(net))


def _klein() -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    tokenizer = build.words(512, chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return {
        "transformer": build.stirred(transformer), "vae": flux2(), "text_encoder": qwen3(transformers.Qwen3ForCausalLM),
        "tokenizer": tokenizer, "scheduler": build.flow_match(),
    }  # fmt: skip


KLEIN = {**sd.TEXT, "max_sequence_length": 16, "text_encoder_out_layers": (1,), "guidance_scale": 2.0}

ENTRIES = [
    Entry("QwenImagePipeline", parts, TEXT, fallbacks={"vae.decoder": STATEFUL}),
    Entry("QwenImageImg2ImgPipeline", parts, IMAGE, fallbacks=WAN),
    Entry("QwenImageInpaintPipeline", parts, {**IMAGE, "mask_image": sd.MASK}, fallbacks=WAN),
    Entry("QwenImageControlNetPipeline", _controlled, {**TEXT, "control_image": picture(32, seed=2)}, fallbacks=WAN),
    Entry("Flux2KleinPipeline", _klein, KLEIN),
    Entry("Flux2KleinPipeline", _klein, {**KLEIN, "image": picture(64)}, "with an image", "image"),
]  # fmt: skip

register(ENTRIES)
