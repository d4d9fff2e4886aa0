"""One tiny model of each kind that diffusers pipelines hold, on OneFlow and on torch."""

import copy

import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderTiny,
    CogVideoXTransformer3DModel,
    ControlNetModel,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    LTXVideoTransformer3DModel,
    PixArtTransformer2DModel,
    PriorTransformer,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    T2IAdapter,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
    WanTransformer3DModel,
)
from torch.utils._pytree import tree_map_only
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
)

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, signature

from .harness import compare

STEP, CLASS, TIMES = torch.tensor(3), torch.tensor([4]), torch.tensor([3])
IDS, KEPT = torch.arange(7)[None] * 5 % 90, torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
SMALL = {"in_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
CROSS = {"cross_attention_dim": 16, "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
UNET = {**SMALL, **CROSS, "sample_size": 8, "out_channels": 4, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
VAE = {
    "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 1}
IMAGE = {**DIT, "sample_size": 8, "patch_size": 2}
MMDIT = {
    "sample_size": 8, "in_channels": 4, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
    "caption_projection_dim": 16, "out_channels": 4,
}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = {**TEXT, "vocab_size": 99, "max_position_embeddings": 16, "pad_token_id": 0}
LLM = {**WORDS, "num_key_value_heads": 1, "head_dim": 8}


def r(*shape):
    return torch.randn(shape)


def sdxl():
    added = {"text_embeds": r(2, 8), "time_ids": r(2, 6)}
    model = UNet2DConditionModel(
        **UNET, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56,
        use_linear_projection=True, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    return model, (r(2, 4, 8, 8), STEP, r(2, 5, 16)), {"added_cond_kwargs": added}


def kandinsky():
    model = UNet2DConditionModel(
        **{**UNET, "out_channels": 8, "cross_attention_dim": 8}
        | {
            "addition_embed_type": "image", "encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj",
            "resnet_time_scale_shift": "scale_shift", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        }
    )  # fmt: skip
    return model, (r(1, 4, 8, 8), STEP, None), {"added_cond_kwargs": {"image_embeds": r(1, 8)}}


def hunyuan():
    model = HunyuanDiT2DModel(
        **{**IMAGE, "num_layers": 2}, hidden_size=16, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4,
        text_len=4, text_len_t5=4, mlp_ratio=2.0,
    )  # fmt: skip
    ones = torch.ones(1, 4, dtype=torch.int64)
    return model, (r(1, 4, 8, 8), torch.tensor([3.0])), {
        "encoder_hidden_states": r(1, 4, 8), "text_embedding_mask": ones, "encoder_hidden_states_t5": r(1, 4, 8),
        "text_embedding_mask_t5": ones, "image_meta_size": r(1, 6), "style": torch.tensor([0]),
        "image_rotary_emb": (r(16, 8), r(16, 8)),
    }  # fmt: skip


def flux():
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    positions = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    times = torch.tensor([0.5]), positions, torch.zeros(5, 3), torch.tensor([3.5])
    return model, (r(1, 16, 4), r(1, 5, 16), r(1, 16), *times), {}


def controlnet():
    model = ControlNetModel(**SMALL, **CROSS, conditioning_embedding_out_channels=(8, 8))
    return model, (r(2, 4, 8, 8), STEP, r(2, 5, 16), r(2, 3, 16, 16)), {"conditioning_scale": 0.5}


def cogvideox():
    model = CogVideoXTransformer3DModel(
        **{**DIT, "out_channels": 4}, time_embed_dim=2, text_embed_dim=16, sample_width=8, sample_height=8, sample_frames=5,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=5,
    )  # fmt: skip
    return model, (r(1, 2, 4, 8, 8), r(1, 5, 16), TIMES), {}


def wan():
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=1, rope_max_seq_len=32, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    return model, (r(1, 4, 2, 8, 8), TIMES, r(1, 5, 16)), {}


def unet1d():
    model = UNet1DModel(
        block_out_channels=(8, 16), sample_size=16, in_channels=4, out_channels=4, norm_num_groups=4, layers_per_block=1,
        time_embedding_type="positional", down_block_types=("DownResnetBlock1D",) * 2, up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock", flip_sin_to_cos=False,
        use_timestep_embedding=True, act_fn="swish",
    )  # fmt: skip
    return model, (r(1, 4, 16), TIMES), {}


def sd3(**options):
    model = SD3Transformer2DModel(**MMDIT, patch_size=1, num_layers=2, pooled_projection_dim=16, **options)
    return model, (r(1, 4, 8, 8), r(1, 5, 16), r(1, 16), TIMES), {}


def pixart():
    model = PixArtTransformer2DModel(
        **{**IMAGE, "out_channels": 8}, cross_attention_dim=16, caption_channels=16, use_additional_conditions=False
    )
    conditions = {"resolution": None, "aspect_ratio": None}
    return model, (r(1, 4, 8, 8), r(1, 7, 16), TIMES), {"added_cond_kwargs": conditions, "encoder_attention_mask": KEPT.float()}


def sana():
    model = SanaTransformer2DModel(
        **{**DIT, "out_channels": 4}, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=8, patch_size=1,
    )  # fmt: skip
    return model, (r(1, 4, 8, 8), r(1, 7, 16), TIMES), {"encoder_attention_mask": KEPT.float()}


def aura():
    model = AuraFlowTransformer2DModel(**MMDIT, patch_size=2, num_mmdit_layers=1, num_single_dit_layers=1, pos_embed_max_size=64)
    return model, (r(1, 4, 8, 8), r(1, 5, 16), torch.tensor([0.3])), {}


def ltx():
    model = LTXVideoTransformer3DModel(**{**DIT, "out_channels": 4}, cross_attention_dim=16, caption_channels=16)
    return model, (r(1, 32, 4), r(1, 7, 16), torch.tensor([3.0]), KEPT.float()), {"num_frames": 2, "height": 4, "width": 4}


def taesd():
    few = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), **few)


def unet2d():
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    model = UNet2DModel(**SMALL, sample_size=8, attention_head_dim=4, down_block_types=down, up_block_types=up)
    return model, (r(1, 4, 8, 8), STEP), {}


def prior():
    model = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=16, num_embeddings=7, additional_embeddings=4
    )
    return model, (r(1, 16), TIMES, r(1, 16), r(1, 7, 16), KEPT.bool()), {}


def clip_text():
    config = CLIPTextConfig(**WORDS, bos_token_id=1, eos_token_id=5, projection_dim=8)
    return CLIPTextModelWithProjection(config), (IDS,), {"attention_mask": KEPT, "output_hidden_states": True}


def clip_vision():
    config = CLIPVisionConfig(**TEXT, image_size=16, patch_size=8, projection_dim=8)
    return CLIPVisionModelWithProjection(config), (r(1, 3, 16, 16),), {}


def t5():
    config = T5Config(vocab_size=99, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    return T5EncoderModel(config), (IDS,), {"attention_mask": KEPT}


def language_model(model):
    return model, (IDS,), {"attention_mask": KEPT, "use_cache": False}


KINDS = {
    "unet": lambda: (UNet2DConditionModel(**UNET), (r(2, 4, 8, 8), STEP, r(2, 5, 16)), {}),
    "sdxl": sdxl, "kandinsky": kandinsky, "controlnet": controlnet, "unet2d": unet2d, "unet1d": unet1d, "prior": prior,
    "t2i_adapter": lambda: (T2IAdapter(channels=[8, 16], num_res_blocks=1), (r(1, 3, 32, 32),), {}),
    "vae_encoder": lambda: (AutoencoderKL(**VAE).encoder, (r(1, 3, 16, 16),), {}),
    "vae_decoder": lambda: (AutoencoderKL(**VAE).decoder, (r(1, 4, 8, 8),), {}),
    "vq": lambda: (VQModel(**VAE, num_vq_embeddings=12, vq_embed_dim=4), (r(1, 3, 16, 16),), {}),
    "tiny_encoder": lambda: (taesd().encoder, (r(1, 3, 16, 16),), {}),
    "tiny_decoder": lambda: (taesd().decoder, (r(1, 4, 8, 8),), {}),
    "sd3": sd3, "sd3.5": lambda: sd3(qk_norm="rms_norm", dual_attention_layers=(0,)), "flux": flux, "pixart": pixart,
    "dit": lambda: (DiTTransformer2DModel(**IMAGE, out_channels=8, num_embeds_ada_norm=10), (r(1, 4, 8, 8), TIMES, CLASS), {}),
    "hunyuan": hunyuan, "aura": aura, "sana": sana, "cogvideox": cogvideox, "wan": wan, "ltx": ltx,
    "clip_text": clip_text, "clip_vision": clip_vision, "t5": t5,
    "gemma2": lambda: language_model(Gemma2Model(Gemma2Config(**LLM, query_pre_attn_scalar=8))),
    "llama": lambda: language_model(LlamaModel(LlamaConfig(**LLM))),
}  # fmt: skip


def tensors_of(output) -> list[torch.Tensor]:
    return signature.flatten(output).tensors


@torch.no_grad()
def filled(model: torch.nn.Module) -> torch.nn.Module:
    """`model` without layers that start as zeros: they would hide all that comes before them."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_model_gives_what_torch_gives(kind):
    model, args, kwargs = KINDS[kind]()
    filled(model.eval())
    by_torch = tensors_of(model(*args, **kwargs))
    exact = model_in_float64(model, args, kwargs)
    diffusers_oneflow.compile(model, OneFlowConfig(fallback="error"))
    made = tensors_of(model(*args, **kwargs))
    assert len(made) == len(by_torch) == len(exact)
    for value, torchs, true in zip(made, by_torch, exact):
        compare(value, torchs, true)


def model_in_float64(model, args, kwargs) -> list[torch.Tensor]:
    args, kwargs = tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs))
    return tensors_of(copy.deepcopy(model).double()(*args, **kwargs))
