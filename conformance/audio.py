"""Sound: Stable Audio, AudioLDM 2, AudioLDM, Dance Diffusion."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from . import build
from .autoencoders import oobleck
from .build import PROMPT, VOCABULARY, WIDTH
from .table import SIGNED, Entry, register

SECONDS = {"prompt": PROMPT, "audio_length_in_s": 0.02}


def _stable() -> dict[str, Any]:
    transformer = diffusers.StableAudioDiTModel(
        sample_size=16, in_channels=3, num_layers=2, attention_head_dim=8, num_attention_heads=4, num_key_value_attention_heads=2,
        out_channels=3, cross_attention_dim=16, time_proj_dim=8, global_states_input_dim=32, cross_attention_input_dim=16,
    )  # fmt: skip
    project = diffusers.StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=16, min_value=0, max_value=32)
    return {
        "transformer": build.stirred(transformer), "projection_model": project, "vae": oobleck(), "text_encoder": build.t5(),
        "tokenizer": build.words(),
        # The one that the pipeline comes with draws its noise by a package of its own.
        "scheduler": diffusers.EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction"),
    }  # fmt: skip


def _vae() -> diffusers.AutoencoderKL:
    return build.vae(in_channels=1, out_channels=1)


def _vocoder() -> transformers.SpeechT5HifiGan:
    return transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]], normalize_before=False,
    ))  # fmt: skip


def _clap(**options: Any) -> transformers.ClapConfig:
    """The configuration of CLAP, which reads texts and hears sounds."""
    text = {"bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0, "hidden_size": WIDTH, "intermediate_size": 37,
            "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "projection_dim": WIDTH,
            "max_position_embeddings": 80, "layer_norm_eps": 1e-5}  # fmt: skip
    sound = {"spec_size": 8, "window_size": 4, "num_mel_bins": 8, "intermediate_size": 37, "layer_norm_eps": 1e-5,
             "depths": [1, 1], "num_attention_heads": [1, 1], "num_hidden_layers": 2, "hidden_size": 192,
             "projection_dim": WIDTH, "patch_size": 2, "patch_stride": 2, "patch_embed_input_channels": 4}  # fmt: skip
    return transformers.ClapConfig(text_config=text, audio_config=sound, projection_dim=WIDTH, **options)


def _unet(cls: type[Any] = diffusers.UNet2DConditionModel, **options: Any) -> Any:
    return cls(**{
        "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **options,
    })  # fmt: skip


def _named() -> dict[str, Any]:
    """The UNet of AudioLDM knows the sound by a class embedding."""
    return {"cross_attention_dim": (16, 32), "class_embed_type": "simple_projection", "class_embeddings_concat": True,
            "projection_class_embeddings_input_dim": WIDTH}  # fmt: skip


def _audio() -> dict[str, Any]:
    text = transformers.ClapTextModelWithProjection(_clap().text_config)
    return {
        "unet": _unet(**_named()), "scheduler": build.ddim(), "vae": _vae(), "text_encoder": text,
        "tokenizer": build.words(77), "vocoder": _vocoder(),
    }  # fmt: skip


def _audio2() -> dict[str, Any]:
    project = diffusers.AudioLDM2ProjectionModel(text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=16)
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_embd=16, n_head=2, n_layer=2, n_ctx=99, n_positions=99, vocab_size=32, bos_token_id=3, eos_token_id=1,
    ))  # fmt: skip
    gpt.config.max_new_tokens = 8
    return {
        **_audio(), "unet": _unet(diffusers.AudioLDM2UNet2DConditionModel, cross_attention_dim=((None, 16, WIDTH),) * 2),
        "text_encoder": transformers.ClapModel(_clap()),
        "feature_extractor": transformers.ClapFeatureExtractor(feature_size=8, hop_length=128),
        "text_encoder_2": build.t5(), "tokenizer_2": build.words(77), "projection_model": project, "language_model": gpt,
    }  # fmt: skip


def _said() -> dict[str, Any]:
    """As embeddings: the language model, which is called with a cache that it fills, cannot be compared call by call."""
    text, words, mask = torch.randn(2, 1, 7, WIDTH), torch.randn(2, 1, 8, 16), torch.ones(1, 7, dtype=torch.long)
    return {
        "prompt_embeds": text[0], "negative_prompt_embeds": text[1], "attention_mask": mask, "negative_attention_mask": mask,
        "generated_prompt_embeds": words[0], "negative_generated_prompt_embeds": words[1], "audio_length_in_s": 0.02,
    }  # fmt: skip


def _dance() -> dict[str, Any]:
    unet = diffusers.UNet1DModel(
        block_out_channels=(32, 32, 64), extra_in_channels=64, sample_size=512, sample_rate=16000, in_channels=2, out_channels=2,
        flip_sin_to_cos=True, use_timestep_embedding=False, time_embedding_type="fourier", mid_block_type="UNetMidBlock1D",
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip
    return {"unet": unet, "scheduler": diffusers.IPNDMScheduler()}


ENTRIES = [
    Entry("StableAudioPipeline", _stable, {"prompt": PROMPT, "audio_end_in_s": 4.0}, values=SIGNED),
    Entry("AudioLDM2Pipeline", _audio2, _said, values=SIGNED,
          idle=("text_encoder", "text_encoder_2", "projection_model", "language_model")),
    Entry("AudioLDMPipeline", _audio, SECONDS, values=SIGNED),
    Entry("DanceDiffusionPipeline", _dance, {"batch_size": 1, "audio_length_in_s": 0.02}, values=SIGNED),
]  # fmt: skip

register(ENTRIES)
