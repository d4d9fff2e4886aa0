"""Other transformers that draw images: PixArt, Sana, Lumina, AuraFlow, HunyuanDiT, CogView, Qwen-Image, PRX, Z-Image, DiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers

from . import build
from . import stable_diffusion as sd
from .build import VOCABULARY, WIDTH
from .draw import picture
from .table import Entry, register

TEXT = {**sd.TEXT, "use_resolution_binning": False}
PLAIN = sd.TEXT
LARGE = {**TEXT, "height": 64, "width": 64}  # for pipelines that take a factor of 8 for granted
SHORT = {**PLAIN, "max_sequence_length": 16}


def parts(transformer: torch.nn.Module, **changes: Any) -> dict[str, Any]:
    """A transformer with T5 and the plain VAE."""
    return {
        "transformer": build.stirred(transformer), "vae": build.vae(shift_factor=0.06), "text_encoder": build.t5(),
        "tokenizer": build.words(),
        "scheduler": build.flow_match(), **changes,
    }  # fmt: skip


def gemma() -> transformers.Gemma2Model:
    """Gemma 2 without its head: the text encoder of Sana and Lumina."""
    return transformers.Gemma2Model(transformers.Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, bos_token_id=3, eos_token_id=1, pad_token_id=0, use_cache=False,
        attn_implementation="sdpa",
    ))  # fmt: skip


def pixart(**changes: Any) -> dict[str, Any]:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, caption_channels=WIDTH,
        in_channels=4, cross_attention_dim=32, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return parts(transformer, scheduler=diffusers.DPMSolverMultistepScheduler(), **changes)


SANA = {
    "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": WIDTH,
    "sample_size": 16,
}  # fmt: skip


def dc() -> diffusers.AutoencoderDC:
    """The deep-compression VAE at a factor of 2.

    Its heads are 32 wide, as Sana's. Linear attention divides by what a query weighs after its ReLU: in heads of 2 that is
    nothing in a fifth of all places, and where it nearly is, a rounding decides. There torch's own error in float16 is 0.0012
    or 0.07, by chance.
    """
    return diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=32, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 32),
        decoder_block_out_channels=(8, 32), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip


def sana(
    scheduler: diffusers.SchedulerMixin | None = None, options: Mapping[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    transformer = diffusers.SanaTransformer2DModel(**{**SANA, **(options or {})})
    chosen = {
        "vae": dc(),
        "text_encoder": gemma(),
        "tokenizer": build.words(512),
        "scheduler": scheduler or build.flow_match(shift=3.0),
    }
    return parts(transformer, **chosen, **changes)


def sprint() -> dict[str, Any]:
    return sana(diffusers.SCMScheduler(), {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"})


def _sana_controlled() -> dict[str, Any]:
    return sana(controlnet=build.stirred(diffusers.SanaControlNetModel(**{**SANA, "num_layers": 1})))


SANA_TEXT = {**TEXT, "complex_human_instruction": None}


def _lumina() -> dict[str, Any]:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=1,
        multiple_of=16, norm_eps=1e-5, qk_norm=True, cross_attention_dim=WIDTH, scaling_factor=1.0,
    )  # fmt: skip
    return parts(transformer, text_encoder=gemma(), tokenizer=build.words(256))


def _lumina2() -> dict[str, Any]:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6), axes_lens=(128, 32, 32),
        cap_feat_dim=WIDTH,
    )  # fmt: skip
    return parts(transformer, text_encoder=gemma(), tokenizer=build.words(256))


def _aura() -> dict[str, Any]:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=WIDTH, caption_projection_dim=32, out_channels=4, pos_embed_max_size=256,
    )  # fmt: skip
    return parts(transformer)


HUNYUAN = {
    "sample_size": 16, "patch_size": 2, "in_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 32,
    "cross_attention_dim": WIDTH, "cross_attention_dim_t5": WIDTH, "pooled_projection_dim": 16, "text_len": 77,
    "text_len_t5": 256, "activation_fn": "gelu-approximate",
}  # fmt: skip


def hunyuan(**changes: Any) -> dict[str, Any]:
    """HunyuanDiT: a BERT and T5, skips between its blocks."""
    bert = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=77,
    )  # fmt: skip
    transformer = diffusers.HunyuanDiT2DModel(**{**HUNYUAN, "num_layers": 4})
    return parts(
        transformer, vae=build.vae8(), text_encoder=transformers.BertModel(bert), text_encoder_2=build.t5(),
        tokenizer=build.words(77),
        tokenizer_2=build.words(256), scheduler=diffusers.DDPMScheduler(), requires_safety_checker=False,
        **build.none("safety_checker", "feature_extractor"), **changes,
    )  # fmt: skip


def _hunyuan_controlled() -> dict[str, Any]:
    net = diffusers.HunyuanDiT2DControlNetModel(**{**HUNYUAN, "transformer_num_layers": 4})
    return hunyuan(controlnet=build.stirred(net))


COGVIEW = {
    "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "out_channels": 4,
    "text_embed_dim": WIDTH, "time_embed_dim": 8, "condition_dim": 2, "pos_embed_max_size": 16, "sample_size": 16,
}  # fmt: skip


def _cogview3() -> dict[str, Any]:
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return parts(diffusers.CogView3PlusTransformer2DModel(**COGVIEW), scheduler=scheduler)


def _cogview4(channels: int = 4) -> dict[str, Any]:
    transformer = diffusers.CogView4Transformer2DModel(**{**COGVIEW, "in_channels": channels, "rope_axes_dim": (8, 8)})
    glm = transformers.GlmConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=3, use_cache=False,
    )  # fmt: skip
    return parts(transformer, text_encoder=transformers.GlmModel(glm), tokenizer=build.words(256, padding_side="left"))


def _prx() -> dict[str, Any]:
    transformer = diffusers.PRXTransformer2DModel(
        patch_size=2, in_channels=4, context_in_dim=WIDTH, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=1, axes_dim=(8, 8)
    )
    return parts(transformer, text_encoder=gemma(), tokenizer=build.words(16))


def _prx_inputs() -> dict[str, Any]:
    embeds = {f"{sign}prompt_embeds": torch.randn(1, 16, WIDTH) for sign in ("", "negative_")}
    masks = {f"{sign}prompt_attention_mask": torch.arange(16)[None] < 9 for sign in ("", "negative_")}
    return {"height": 32, "width": 32, "use_resolution_binning": False, **embeds, **masks}


def z_image(**options: Any) -> dict[str, Any]:
    """Z-Image: text and image tokens in one stream; Qwen 3 reads the prompt."""
    transformer = diffusers.ZImageTransformer2DModel(**{
        "in_channels": 16, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
        "cap_feat_dim": WIDTH, "axes_dims": [8, 4, 4], "axes_lens": [256, 32, 32], **options,
    })  # fmt: skip
    qwen = transformers.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=3, use_cache=False,
    )  # fmt: skip
    tokenizer = build.words(512, chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return parts(
        transformer, vae=build.vae(16, shift_factor=0.1), text_encoder=transformers.Qwen3Model(qwen), tokenizer=tokenizer
    )


def _dit() -> dict[str, Any]:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
    )  # fmt: skip
    return {"transformer": build.stirred(transformer), "vae": build.vae(), "scheduler": diffusers.DDIMScheduler()}


PAG = {"pag_scale": 3.0}

ENTRIES = [
    Entry("PixArtAlphaPipeline", pixart, TEXT, "adaptive norms and masked cross-attention"),
    Entry("PixArtSigmaPipeline", pixart, TEXT),
    Entry("PixArtSigmaPAGPipeline", lambda: pixart(pag_applied_layers=["blocks.1"]), {**TEXT, **PAG}),
    Entry("SanaPipeline", sana, SANA_TEXT, "linear attention, Gemma and the deep-compression VAE"),
    Entry("SanaPAGPipeline", lambda: sana(pag_applied_layers=["transformer_blocks.0"]), {**SANA_TEXT, **PAG}),
    Entry("SanaControlNetPipeline", _sana_controlled, {**SANA_TEXT, "control_image": picture(32)}),
    Entry("SanaSprintPipeline", sprint, SANA_TEXT),
    Entry("SanaSprintImg2ImgPipeline", sprint, {**SANA_TEXT, "image": picture(32), "strength": 1.0}),
    Entry("LuminaPipeline", _lumina, {**SHORT, "clean_caption": False}),
    # It makes a list of lengths out of the mask, and cuts the prompts to them.
    Entry("Lumina2Pipeline", _lumina2, SHORT, fallbacks={"transformer": "data-dependent"}),
    Entry("AuraFlowPipeline", _aura, PLAIN),
    Entry("HunyuanDiTPipeline", hunyuan, LARGE),
    Entry("HunyuanDiTPAGPipeline", lambda: hunyuan(pag_applied_layers=["blocks.1"]), {**LARGE, **PAG}),
    Entry("HunyuanDiTControlNetPipeline", _hunyuan_controlled, {**LARGE, "control_image": picture(64)}),
    Entry("CogView3PlusPipeline", _cogview3, SHORT),
    Entry("CogView4Pipeline", _cogview4, SHORT),
    Entry("CogView4ControlPipeline", lambda: _cogview4(8), {**SHORT, "control_image": picture(32)}),
    # It cleans prompts with ftfy, so it gets embeddings.
    Entry("PRXPipeline", _prx, _prx_inputs, idle=("text_encoder",)),
    Entry("ZImagePipeline", z_image, SHORT),
    Entry("ZImageImg2ImgPipeline", z_image, {**SHORT, "image": picture(32), "strength": 1.0}),
    Entry("ZImageInpaintPipeline", z_image, {**sd.INPAINT, "max_sequence_length": 16}),
    Entry("DiTPipeline", _dit, {"class_labels": [1, 7]}),
]  # fmt: skip

register(ENTRIES)
