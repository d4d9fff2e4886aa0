"""Other families of pipelines, with tiny models of random weights; prompts are embeddings where a tokenizer is none of ours."""

import diffusers
import torch
import transformers

import diffusers_oneflow
from diffusers_oneflow.parity import Report

from .draw import compare
from .registry import case


def _tokenizer():
    return transformers.CLIPTokenizer.from_pretrained(diffusers_oneflow.demo_model(), subfolder="tokenizer")


def _clip(cls, tokenizer, width: int = 32):
    config = transformers.CLIPTextConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return cls(config).eval()


def _vae(channels: int = 4, **options) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=4, latent_channels=channels, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


@case("sdxl")
def sdxl() -> Report:
    """Stable Diffusion XL: two text encoders, added time ids."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
    ).eval()  # fmt: skip
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(transformers.CLIPTextModel, tokenizer),
        text_encoder_2=_clip(transformers.CLIPTextModelWithProjection, tokenizer), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet, scheduler=diffusers.EulerDiscreteScheduler(),
    )  # fmt: skip
    return compare(pipe, "a red circle", height=32, width=32)


@case("sd3")
def sd3() -> Report:
    """Stable Diffusion 3: the joint transformer, from given embeddings."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=16, qk_norm="rms_norm",
    ).eval()  # fmt: skip
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(16, shift_factor=0.06),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")),
    )  # fmt: skip
    return compare(
        pipe, height=32, width=32, prompt_embeds=torch.randn(1, 20, 32), negative_prompt_embeds=torch.randn(1, 20, 32),
        pooled_prompt_embeds=torch.randn(1, 32), negative_pooled_prompt_embeds=torch.randn(1, 32),
    )  # fmt: skip


@case("flux")
def flux() -> Report:
    """Flux: rotary embeddings, packed latents, from given embeddings."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    pipe = diffusers.FluxPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(4, shift_factor=0.06),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
    )  # fmt: skip
    return compare(
        pipe, height=32, width=32, prompt_embeds=torch.randn(1, 20, 32), pooled_prompt_embeds=torch.randn(1, 32),
        max_sequence_length=20,
    )  # fmt: skip


@case("pixart")
def pixart() -> Report:
    """PixArt: a transformer with adaptive norms and masked cross-attention."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, caption_channels=32,
        in_channels=4, cross_attention_dim=32, out_channels=8, use_additional_conditions=False,
    ).eval()  # fmt: skip
    pipe = diffusers.PixArtAlphaPipeline(
        transformer=transformer, scheduler=diffusers.DPMSolverMultistepScheduler(), vae=_vae(), text_encoder=None, tokenizer=None,
    )  # fmt: skip
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[:, 13:] = 0
    return compare(
        pipe, negative_prompt=None, height=32, width=32, prompt_embeds=torch.randn(1, 20, 32), prompt_attention_mask=mask,
        negative_prompt_embeds=torch.randn(1, 20, 32), negative_prompt_attention_mask=mask, use_resolution_binning=False,
    )  # fmt: skip


@case("t5")
def t5() -> Report:
    """The T5 text encoder of SD 3, Flux and PixArt: relative positions, RMS norm, gated GELU."""
    from diffusers_oneflow.parity import component

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    ids = torch.randint(0, 100, (2, 20))
    return Report([component(transformers.T5EncoderModel(config).eval(), (ids,), {}, "t5")])
