"""Videos by transformers: CogVideoX, Wan, LTX, Mochi, Hunyuan Video, Allegro, Latte."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from . import build
from .build import PROMPT, WIDTH, Maker
from .draw import picture
from .table import Entry, register

# The VAEs keep frames from one piece of a video to the next in lists that they change.
STATEFUL = "forward puts something into a list"
VIDEO = {"prompt": PROMPT, "height": 16, "width": 16, "num_frames": 9, "max_sequence_length": 16}


def parts(transformer: torch.nn.Module, vae: torch.nn.Module, **changes: Any) -> dict[str, Any]:
    """A transformer and a video VAE with T5."""
    return {
        "transformer": build.stirred(transformer), "vae": vae, "text_encoder": build.t5(), "tokenizer": build.words(),
        "scheduler": build.flow_match(), **changes,
    }  # fmt: skip


def cogvideo(**options: Any) -> dict[str, Any]:
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


def wan(channels: int = 16, **changes: Any) -> dict[str, Any]:
    """What WanPipeline is made of."""
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16, text_dim=WIDTH, freq_dim=32,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32, **changes.pop("transformer", {}),
    )  # fmt: skip
    return parts(transformer, _wan_vae(), **changes)


def _pictured(make: Callable[..., dict[str, Any]], **options: Any) -> Maker:
    """Wan's parts with CLIP's image encoder: hidden states of the transformer's `image_dim`."""

    def made() -> dict[str, Any]:
        encoder = build.clip_vision(projected=False)
        return {**make(**options), "image_encoder": encoder, "image_processor": build.clip_images()}

    return made


def _sky(channels: int = 16, **changes: Any) -> dict[str, Any]:
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16, text_dim=WIDTH, freq_dim=32,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32, **changes,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    return parts(transformer, _wan_vae(), scheduler=scheduler)


def _vace() -> dict[str, Any]:
    transformer = diffusers.WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=WIDTH, freq_dim=32, ffn_dim=32,
        num_layers=2, rope_max_seq_len=32, vace_layers=[0], vace_in_channels=96,
    )  # fmt: skip
    return parts(transformer, _wan_vae())


def allegro_vae() -> diffusers.AutoencoderKLAllegro:
    """The VAE of Allegro; it works in tiles, whose overlaps it blends."""
    made = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, sample_size=64, latent_channels=4
    )
    made.enable_tiling()
    return made


def _allegro() -> dict[str, Any]:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1, cross_attention_dim=24,
        sample_width=8, sample_height=8, sample_frames=8, caption_channels=WIDTH,
    )  # fmt: skip
    return parts(transformer, allegro_vae(), scheduler=diffusers.DDIMScheduler())


def _sana() -> dict[str, Any]:
    from .pixart_sana_etc import gemma

    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_layers=2, num_attention_heads=2, attention_head_dim=12, num_cross_attention_heads=2,
        cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=WIDTH, sample_size=2, rope_max_seq_len=32,
    )  # fmt: skip
    return parts(transformer, _wan_vae(), text_encoder=gemma(), tokenizer=build.words(512))


def embedded(**more: Any) -> Maker:
    """Inputs with embeddings in the place of a prompt, which would need a package to be cleaned."""

    def made() -> dict[str, Any]:
        embeds = {f"{sign}prompt_embeds": torch.randn(1, 16, WIDTH) for sign in ("", "negative_")}
        return {**embeds, "height": 16, "width": 16, "num_frames": 9, **more}

    return made


def without_frames(inputs: Maker) -> Maker:
    """The same without their number, which a video says itself."""
    return lambda: {k: v for k, v in inputs().items() if k != "num_frames"}


def ltx() -> dict[str, Any]:
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


def mochi() -> dict[str, Any]:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
        qk_norm="rms_norm", text_embed_dim=WIDTH, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(64, 64, 64, 64), decoder_block_out_channels=(64, 64, 64, 64),
        layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return parts(transformer, vae)


def hunyuan() -> dict[str, Any]:
    import transformers

    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(16, 16, 16, 16), layers_per_block=1, norm_num_groups=4,
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


def _latte() -> dict[str, Any]:
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=WIDTH,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, video_length=2,
    )  # fmt: skip
    return parts(transformer, build.vae8(), scheduler=diffusers.DDIMScheduler())


# Both halves of Wan's VAE are called with such lists.
WAN = {"vae.encoder": STATEFUL, "vae.decoder": STATEFUL}
FRAMES = [picture(16, seed=i) for i in range(9)]
TEMPLATE = {"template": "{}", "crop_start": 0}

ENTRIES = [
    Entry("CogVideoXPipeline", cogvideo, VIDEO),
    Entry("CogVideoXVideoToVideoPipeline", cogvideo,
          {**{k: v for k, v in VIDEO.items() if k != "num_frames"}, "video": [picture(16, seed=i) for i in range(9)]}),
    Entry("WanPipeline", wan, VIDEO, fallbacks={"vae.decoder": STATEFUL}),
    Entry("CogVideoXImageToVideoPipeline", lambda: cogvideo(in_channels=8), {**VIDEO, "image": picture(16)}),
    Entry("CogVideoXFunControlPipeline", lambda: cogvideo(in_channels=8),
          {**{k: v for k, v in VIDEO.items() if k != "num_frames"}, "control_video": FRAMES}),
    Entry("WanImageToVideoPipeline", _pictured(wan, channels=36, transformer={"image_dim": WIDTH}),
          embedded(image=picture(16)), idle=("text_encoder",), fallbacks=WAN),
    Entry("WanVideoToVideoPipeline", wan, without_frames(embedded(video=FRAMES, strength=1.0)), idle=("text_encoder",),
          fallbacks=WAN),
    Entry("WanVACEPipeline", _vace, embedded(), idle=("text_encoder",), fallbacks=WAN),
    Entry("LucyEditPipeline", lambda: wan(32), embedded(video=FRAMES), idle=("text_encoder",), fallbacks=WAN),
    Entry("SkyReelsV2Pipeline", _sky, embedded(), idle=("text_encoder",), fallbacks={"vae.decoder": STATEFUL}),
    Entry("SkyReelsV2ImageToVideoPipeline", _pictured(_sky, channels=36, image_dim=WIDTH),
          embedded(image=picture(16)), idle=("text_encoder",), fallbacks=WAN),
    Entry("AllegroPipeline", _allegro,
          {"prompt": PROMPT, "height": 64, "width": 64, "num_frames": 24, "max_sequence_length": 16, "clean_caption": False}),
    Entry("SanaVideoPipeline", _sana, {
        "prompt": PROMPT, "height": 32, "width": 32, "frames": 9, "max_sequence_length": 16, "complex_human_instruction": None,
        "use_resolution_binning": False}, fallbacks={"vae.decoder": STATEFUL}),
    Entry("LTXConditionPipeline", ltx, {**VIDEO, "height": 32, "width": 32, "image": picture(32)}),
    Entry("LTXPipeline", ltx, {**VIDEO, "height": 32, "width": 32}),
    Entry("LTXImageToVideoPipeline", ltx, {**VIDEO, "height": 32, "width": 32, "image": picture(32)}),
    Entry("MochiPipeline", mochi, {**VIDEO, "num_frames": 7}, fallbacks={"transformer": "data-dependent"}),
    Entry("HunyuanVideoPipeline", hunyuan, {**VIDEO, "prompt_template": TEMPLATE}),
    Entry("LattePipeline", _latte, {"prompt": PROMPT, "height": 64, "width": 64, "video_length": 2, "clean_caption": False}),
]  # fmt: skip

register(ENTRIES)
