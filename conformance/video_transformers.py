"""Videos by transformers: CogVideoX, Wan, LTX, Mochi, Hunyuan Video, Allegro, Latte."""

import diffusers

from . import build
from .build import PROMPT, WIDTH
from .draw import picture
from .table import Entry, register

# The VAEs keep frames from one piece of a video to the next in lists that they change.
STATEFUL = "forward puts something into a list"
VIDEO = {"prompt": PROMPT, "height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}


def parts(transformer, vae, **changes) -> dict:
    """A transformer and a video VAE with T5."""
    return {
        "transformer": build.stirred(transformer), "vae": vae, "text_encoder": build.t5(), "tokenizer": build.words(),
        "scheduler": build.flow_match(), **changes,
    }  # fmt: skip


def cogvideo(**options) -> dict:
    """What CogVideoXPipeline is made of."""
    transformer = diffusers.CogVideoXTransformer3DModel(**{
        "num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "time_embed_dim": 2,
        "text_embed_dim": WIDTH, "num_layers": 1, "sample_width": 2, "sample_height": 2, "sample_frames": 9, "patch_size": 2,
        "temporal_compression_ratio": 4, "max_text_seq_length": 16, **options,
    })  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    return parts(transformer, vae, scheduler=diffusers.CogVideoXDDIMScheduler())


def _wan_vae() -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan(channels: int = 16, **changes) -> dict:
    """What WanPipeline is made of."""
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16, text_dim=WIDTH, freq_dim=32,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32, **changes.pop("transformer", {}),
    )  # fmt: skip
    return parts(transformer, _wan_vae(), **changes)


def ltx() -> dict:
    """What LTXPipeline is made of."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, num_layers=1,
        caption_channels=WIDTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=1, encoder_causal=True,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return parts(transformer, vae)


def _mochi() -> dict:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
        qk_norm="rms_norm", text_embed_dim=WIDTH, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return parts(transformer, vae)


def _hunyuan() -> dict:
    import transformers

    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )  # fmt: skip
    llama = transformers.LlamaConfig(
        vocab_size=build.VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=3, eos_token_id=1, use_cache=False,
    )  # fmt: skip
    return parts(
        transformer, vae, text_encoder=transformers.LlamaModel(llama), text_encoder_2=build.clip_text(max_position_embeddings=77),
        tokenizer_2=build.tokenizer(), scheduler=build.flow_match(shift=7.0),
    )  # fmt: skip


def _latte() -> dict:
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=WIDTH,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, video_length=2,
    )  # fmt: skip
    return parts(transformer, build.vae8(), scheduler=diffusers.DDIMScheduler())


TEMPLATE = {"template": "{}", "crop_start": 0}

ENTRIES = [
    Entry("CogVideoXPipeline", cogvideo, VIDEO),
    Entry("CogVideoXVideoToVideoPipeline", cogvideo,
          {**{k: v for k, v in VIDEO.items() if k != "num_frames"}, "video": [picture(16, seed=i) for i in range(9)]}),
    Entry("WanPipeline", wan, VIDEO, fallbacks={"vae.decoder": STATEFUL}),
    Entry("LTXPipeline", ltx, {**VIDEO, "height": 32, "width": 32}),
    Entry("LTXImageToVideoPipeline", ltx, {**VIDEO, "height": 32, "width": 32, "image": picture(32)}),
    Entry("MochiPipeline", _mochi, {**VIDEO, "num_frames": 7}, fallbacks={"transformer": "data-dependent"}),
    Entry("HunyuanVideoPipeline", _hunyuan, {**VIDEO, "prompt_template": TEMPLATE}),
    Entry("LattePipeline", _latte, {"prompt": PROMPT, "height": 64, "width": 64, "video_length": 2, "clean_caption": False}),
]  # fmt: skip

register(ENTRIES)
