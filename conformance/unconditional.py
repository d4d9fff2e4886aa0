"""Images without a prompt, and pixels without a VAE: DDPM, DDIM, consistency models, latent diffusion, DeepFloyd IF."""

from __future__ import annotations

from typing import Any

import diffusers

from . import build
from . import stable_diffusion as sd
from .build import PROMPT, WIDTH, Maker
from .draw import picture
from .table import Entry, register


def unet2d(**options: Any) -> diffusers.UNet2DModel:
    """The UNet without text, at images of 16x16."""
    return diffusers.UNet2DModel(**{
        "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), **options,
    })  # fmt: skip


def vq(**options: Any) -> diffusers.VQModel:
    """A VAE with a code book that halves each side."""
    return diffusers.VQModel(**{
        "block_out_channels": (16, 32), "norm_num_groups": 4, "latent_channels": 3, "num_vq_embeddings": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **options,
    })  # fmt: skip


def _plain(scheduler: diffusers.SchedulerMixin, **options: Any) -> Maker:
    return lambda: {"unet": unet2d(**options), "scheduler": scheduler}


def _consistency() -> dict[str, Any]:
    unet = unet2d(
        resnet_time_scale_shift="scale_shift", num_class_embeds=10, downsample_type="resnet", upsample_type="resnet",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )  # fmt: skip
    return {"unet": unet, "scheduler": diffusers.CMStochasticIterativeScheduler()}


def _ldm() -> dict[str, Any]:
    bert = diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion.LDMBertModel
    config = diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion.LDMBertConfig(
        vocab_size=build.VOCABULARY, max_position_embeddings=77, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2,
        head_dim=16, d_model=WIDTH,
    )  # fmt: skip
    return {
        "unet": build.unet(), "vqvae": build.vae(), "bert": bert(config), "tokenizer": build.words(77),
        "scheduler": build.ddim(),
    }  # fmt: skip


def _if_unet(channels: int = 3, **options: Any) -> diffusers.UNet2DConditionModel:
    return build.unet(
        in_channels=channels, out_channels=6, sample_size=16, act_fn="gelu", addition_embed_type="text",
        addition_embed_type_num_heads=2, cross_attention_norm="group_norm", encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        resnet_skip_time_act=True, resnet_time_scale_shift="scale_shift", time_embedding_act_fn="gelu", time_embedding_dim=32,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), only_cross_attention=True, **options,
    )  # fmt: skip


def deepfloyd(upscales: bool = False) -> dict[str, Any]:
    """DeepFloyd IF: T5, and a UNet on pixels that also predicts the variance."""
    scheduler = dict(variance_type="learned_range", beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
    made = {
        "unet": _if_unet(6, class_embed_type="timestep") if upscales else _if_unet(), "text_encoder": build.t5(),
        "tokenizer": build.words(77), "scheduler": diffusers.DDPMScheduler(thresholding=True, **scheduler),
        "requires_safety_checker": False, **build.none("safety_checker", "feature_extractor", "watermarker"),
    }  # fmt: skip
    return {**made, "image_noising_scheduler": diffusers.DDPMScheduler(**scheduler)} if upscales else made


def _upscaler() -> dict[str, Any]:
    return deepfloyd(True)


IF = {"prompt": PROMPT, "clean_caption": False}
MASK = picture(16, seed=1).convert("L").point(lambda v: 255 * (v > 128))

ENTRIES = [
    Entry("DDPMPipeline", _plain(diffusers.DDPMScheduler())),
    Entry("DDIMPipeline", _plain(diffusers.DDIMScheduler())),
    Entry("PNDMPipeline", _plain(diffusers.PNDMScheduler()), {"num_inference_steps": 8}),
    Entry("ScoreSdeVePipeline", _plain(diffusers.ScoreSdeVeScheduler(), time_embedding_type="fourier")),
    Entry("KarrasVePipeline", _plain(diffusers.schedulers.deprecated.KarrasVeScheduler())),
    Entry("RePaintPipeline", _plain(diffusers.RePaintScheduler(), sample_size=32),
          {"image": picture(32), "mask_image": sd.MASK, "jump_length": 1, "jump_n_sample": 2}),
    Entry("ConsistencyModelPipeline", _consistency, {"class_labels": 3}),
    Entry("LDMPipeline", lambda: {
        "vqvae": vq(), "unet": unet2d(in_channels=3, out_channels=3), "scheduler": diffusers.DDIMScheduler()},
        idle=("vqvae.encoder",)),
    # In float16 alone it looks for infinities, and branches.
    Entry("LDMTextToImagePipeline", _ldm, {**sd.TEXT, "guidance_scale": 2.0}, idle=("vqvae.encoder",),
          fallbacks_in={"float16": {"bert": "data-dependent"}}),
    Entry("LDMSuperResolutionPipeline", lambda: {
        "vqvae": vq(), "unet": unet2d(in_channels=6, out_channels=3), "scheduler": diffusers.DDIMScheduler()},
        {"image": picture(32)}, idle=("vqvae.encoder",)),
    Entry("IFPipeline", deepfloyd, {**IF, "height": 16, "width": 16}),
    Entry("IFImg2ImgPipeline", deepfloyd, {**IF, "image": picture(16), "strength": 1.0}),
    Entry("IFInpaintingPipeline", deepfloyd, {**IF, "image": picture(16), "mask_image": MASK, "strength": 1.0}),
    Entry("IFSuperResolutionPipeline", _upscaler, {**IF, "image": picture(16), "height": 32, "width": 32}),
    Entry("IFImg2ImgSuperResolutionPipeline", _upscaler,
          {**IF, "image": picture(16), "original_image": picture(32, seed=3), "strength": 1.0}),
    Entry("IFInpaintingSuperResolutionPipeline", _upscaler,
          {**IF, "image": picture(16), "original_image": picture(32, seed=3), "mask_image": sd.MASK, "strength": 1.0}),
]  # fmt: skip

register(ENTRIES)
