"""Other models: Amused, HiDream, Ovis."""

from typing import Any

import diffusers
import transformers

from . import build, qwen
from . import stable_diffusion as sd
from .build import PROMPT, VOCABULARY, WIDTH
from .draw import picture
from .table import Entry, register


def _amused() -> dict[str, Any]:
    transformer = diffusers.UVit2DModel(
        hidden_size=WIDTH, cond_embed_dim=WIDTH, micro_cond_encode_dim=4, micro_cond_embed_dim=20, encoder_hidden_size=WIDTH,
        vocab_size=33, codebook_size=32, in_channels=WIDTH, block_out_channels=WIDTH, num_res_blocks=1, downsample=True,
        upsample=True, block_num_heads=2, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    vae = diffusers.VQModel(
        block_out_channels=(16, 32), norm_num_groups=4, latent_channels=8, num_vq_embeddings=32, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, lookup_from_codebook=True,
    )  # fmt: skip
    return {
        "transformer": build.stirred(transformer), "vqvae": vae, "text_encoder": build.clip_text(projected=True),
        "tokenizer": build.tokenizer(), "scheduler": diffusers.AmusedScheduler(mask_token_id=32),
    }  # fmt: skip


def _hidream() -> dict[str, Any]:
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[WIDTH, 16], text_emb_dim=2 * WIDTH, num_routed_experts=4,
        num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
        force_inference_output=True,
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
        bos_token_id=3, eos_token_id=1, use_cache=False,
    ))  # fmt: skip
    return {
        "transformer": build.stirred(transformer), "vae": build.vae(shift_factor=0.06), "scheduler": build.flow_match(),
        "text_encoder": build.clip_text(projected=True), "tokenizer": build.tokenizer(),
        "text_encoder_2": build.clip_text(projected=True), "tokenizer_2": build.tokenizer(),
        "text_encoder_3": build.t5(), "tokenizer_3": build.words(), "text_encoder_4": llama, "tokenizer_4": build.words(),
    }  # fmt: skip


def _ovis() -> dict[str, Any]:
    transformer = diffusers.OvisImageTransformer2DModel(
        patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    tokenizer = build.words(512, chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return {
        "transformer": build.stirred(transformer), "vae": build.vae(4, shift_factor=0.06), "text_encoder": qwen.qwen3(),
        "tokenizer": tokenizer, "scheduler": build.flow_match(),
    }  # fmt: skip


ENTRIES = [
    Entry("AmusedPipeline", _amused, sd.TEXT, idle=("vqvae.encoder",)),
    Entry("AmusedImg2ImgPipeline", _amused, {"prompt": PROMPT, "image": picture(32)}),
    Entry("AmusedInpaintPipeline", _amused, {"prompt": PROMPT, "image": picture(32), "mask_image": sd.MASK}),
    Entry("HiDreamImagePipeline", _hidream, {**sd.TEXT, "max_sequence_length": 16},
          fallbacks={"transformer": ".numpy() is not supported"}),
    Entry("OvisImagePipeline", _ovis, {**sd.TEXT, "max_sequence_length": 64}),
]  # fmt: skip

register(ENTRIES)
