"""Videos by UNets: AnimateDiff, Stable Video Diffusion, text-to-video."""

from collections.abc import Callable
from typing import Any

import diffusers

from . import build, controlnet, sdxl
from . import stable_diffusion as sd
from .build import PROMPT, WIDTH, Maker
from .draw import picture
from .table import Entry, register

FRAMES = [picture(32, seed=i) for i in range(4)]
VIDEO = {**sd.TEXT, "num_frames": 4}


def _adapter(**options: Any) -> diffusers.MotionAdapter:
    return build.stirred(diffusers.MotionAdapter(**{
        "block_out_channels": (16, 32), "motion_layers_per_block": 1, "motion_norm_num_groups": 4,
        "motion_num_attention_heads": 4, **options,
    }))  # fmt: skip


def _animated(parts: Callable[..., dict[str, Any]] = sd.without, **options: Any) -> Maker:
    def made() -> dict[str, Any]:
        given = parts(*(sd.SAFETY if parts is sd.without else ()), motion_adapter=_adapter())
        return {**given, **options}

    return made


def _animated_xl() -> dict[str, Any]:
    return sdxl.parts(motion_adapter=_adapter(use_motion_mid_block=False))


def _sparse() -> dict[str, Any]:
    given = _animated()()
    net = diffusers.SparseControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=WIDTH, attention_head_dim=8,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"), 
        conditioning_embedding_out_channels=controlnet.CONDITION, conditioning_channels=3,
        motion_num_attention_heads=4, motion_max_seq_length=8, concat_conditioning_mask=False,
        use_simplified_condition_embedding=False,
    )  # fmt: skip
    return {**given, "controlnet": build.stirred(net)}


def _svd() -> dict[str, Any]:
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=16, in_channels=8, out_channels=4, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=WIDTH,
        num_attention_heads=4, projection_class_embeddings_input_dim=96, addition_time_embed_dim=32, num_frames=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    return {
        "unet": build.stirred(unet), "vae": build.stirred(vae),
        "image_encoder": build.clip_vision(image_size=224, patch_size=32), "feature_extractor": build.clip_images(224),
        "scheduler": diffusers.EulerDiscreteScheduler(
            interpolation_type="linear", prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002,
            sigma_max=700.0, use_karras_sigmas=True, timestep_spacing="leading",
        ),
    }  # fmt: skip


def _modelscope() -> dict[str, Any]:
    unet = diffusers.UNet3DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=WIDTH,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return sd.without(*sd.SAFETY, "feature_extractor", unet=build.stirred(unet))


# The pipeline puts it into the UNet.
IDLE = ("motion_adapter",)

ENTRIES = [
    Entry("AnimateDiffPipeline", _animated(), VIDEO, idle=IDLE),
    Entry("AnimateDiffSDXLPipeline", _animated_xl, VIDEO, idle=IDLE),
    Entry("AnimateDiffVideoToVideoPipeline", _animated(), {**sd.TEXT, "video": FRAMES, "strength": 1.0}, idle=IDLE),
    Entry("AnimateDiffControlNetPipeline", controlnet.plain(_animated()), {**VIDEO, "conditioning_frames": FRAMES}, idle=IDLE),
    Entry("AnimateDiffVideoToVideoControlNetPipeline", controlnet.plain(_animated()),
          {**sd.TEXT, "video": FRAMES, "conditioning_frames": FRAMES, "strength": 1.0}, idle=IDLE),
    Entry("AnimateDiffSparseControlNetPipeline", _sparse, {**VIDEO, "conditioning_frames": FRAMES[:1]}, idle=IDLE),
    Entry("AnimateDiffPAGPipeline", lambda: {**_animated()(), "pag_applied_layers": ["mid_block.*attn1"]},
          {**VIDEO, "pag_scale": 3.0}, idle=IDLE),
    Entry("PIAPipeline", _animated(unet=build.unet(in_channels=9)), {**VIDEO, "image": picture(32), "strength": 1.0}, idle=IDLE),
    Entry("StableVideoDiffusionPipeline", _svd, {"image": picture(32), "num_frames": 4, "height": 32, "width": 32}),
    Entry("TextToVideoSDPipeline", _modelscope, VIDEO),
    Entry("VideoToVideoSDPipeline", _modelscope, {"prompt": PROMPT, "video": FRAMES, "strength": 1.0}),
]  # fmt: skip

register(ENTRIES)
