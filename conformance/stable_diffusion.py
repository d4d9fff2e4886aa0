"""Stable Diffusion 1 and 2, and what is made of its parts."""

from typing import Any

import diffusers
import torch
import transformers

from . import build
from .build import PROMPT, WIDTH
from .draw import picture
from .table import Entry, register

TEXT = {"prompt": PROMPT, "height": 32, "width": 32}
IMAGE = {"prompt": PROMPT, "image": picture(32), "strength": 1.0}
MASK = picture(32, seed=1).convert("L").point(lambda v: 255 * (v > 128))
INPAINT = {**TEXT, "image": picture(32), "mask_image": MASK, "strength": 1.0}


def parts(**changes: Any) -> dict[str, Any]:
    """What StableDiffusionPipeline is made of."""
    made = {
        "unet": None, "vae": None, "text_encoder": build.clip_text, "tokenizer": build.tokenizer(),
        "scheduler": build.ddim(), "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
        **changes,
    }  # fmt: skip
    defaults = {"unet": build.unet, "vae": build.vae}
    made = {name: defaults[name]() if part is None and name in defaults else part for name, part in made.items()}
    return {name: part() if part is build.clip_text else part for name, part in made.items()}


def without(*names: str, **changes: Any) -> dict[str, Any]:
    """The same without some of them."""
    return {name: part for name, part in parts(**changes).items() if name not in names}


SAFETY = ("safety_checker", "requires_safety_checker")


def image_encoder() -> dict[str, Any]:
    """CLIP's image encoder and what prepares images for it."""
    return {"image_encoder": build.clip_vision(), "feature_extractor": build.clip_images()}


def _depth() -> dict[str, Any]:
    config = transformers.DPTConfig(
        hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37, image_size=32, patch_size=16,
        is_hybrid=False, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 16, 32, 32], fusion_hidden_size=16,
        reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    return {
        **without(*SAFETY, unet=build.unet(in_channels=5)),
        "depth_estimator": transformers.DPTForDepthEstimation(config),
        "feature_extractor": transformers.DPTImageProcessorPil(size={"height": 32, "width": 32}),
    }


def _latent_upscale() -> dict[str, Any]:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=5, block_out_channels=(32, 32, 64, 64), layers_per_block=1,
        norm_num_groups=None, cross_attention_dim=WIDTH, attention_head_dim=8, act_fn="gelu", time_cond_proj_dim=160,
        conv_in_kernel=1, conv_out_kernel=1, norm_eps=1e-5, resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu", only_cross_attention=False, mid_block_type=None,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
    return without(*SAFETY, "feature_extractor", unet=unet, scheduler=scheduler)


def _upscale() -> dict[str, Any]:
    return {
        **without("requires_safety_checker", unet=build.unet(in_channels=7, num_class_embeds=400)),
        "low_res_scheduler": diffusers.DDPMScheduler(),
    }


def _lcm(**changes: Any) -> dict[str, Any]:
    return parts(unet=build.unet(time_cond_proj_dim=32), scheduler=diffusers.LCMScheduler(), **changes)


def _unclip_noise() -> dict[str, Any]:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    return {
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "unet": build.unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
    }


def _unclip() -> dict[str, Any]:
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=1,
        num_embeddings=build.tokenizer().model_max_length,
    )  # fmt: skip
    return {
        **without(*SAFETY, "feature_extractor"), **_unclip_noise(), "prior": prior, "prior_tokenizer": build.tokenizer(),
        "prior_text_encoder": build.clip_text(projected=True),
        "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
    }  # fmt: skip


def _adapters(pipe: Any) -> None:
    from peft import LoraConfig

    for name in ("first", "second"):
        pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False), name)
    pipe.unet.set_adapter("first")


def _other_adapter(pipe: Any) -> None:
    pipe.unet.set_adapter("second")


def _other_weights(pipe: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter)


ENTRIES = [
    Entry("StableDiffusionPipeline", parts, TEXT, "Stable Diffusion 1, text to image"),
    Entry("StableDiffusionPipeline", parts, TEXT, "a LoRA whose weights are replaced after a run", "lora-changed",
          prepare=_adapters, change=_other_weights),
    Entry("StableDiffusionPipeline", parts, TEXT, "another LoRA becomes the active one after a run", "lora-switched",
          prepare=_adapters, change=_other_adapter),
    Entry(
        "StableDiffusionPipeline", lambda: parts(
            unet=build.unet(use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True),
            scheduler=build.ddim(prediction_type="v_prediction"), text_encoder=build.clip_text(hidden_act="gelu"),
        ), TEXT, "Stable Diffusion 2: v-prediction, linear projections, upcast attention", "v2",
    ),
    Entry(
        "StableDiffusionPipeline",
        lambda: parts(scheduler=diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing")),
        {**TEXT, "num_inference_steps": 1, "guidance_scale": 0.0}, "Turbo: one step, no guidance", "turbo",
    ),
    Entry("StableDiffusionPipeline", _lcm, TEXT, "a guidance embedding and the LCM scheduler", "lcm"),
    Entry("StableDiffusionImg2ImgPipeline", parts, IMAGE),
    Entry("StableDiffusionInpaintPipeline", parts, INPAINT, "on a UNet of four channels"),
    Entry("StableDiffusionInpaintPipeline", lambda: parts(unet=build.unet(in_channels=9)), INPAINT, "on nine channels", "nine"),
    Entry("StableDiffusionDepth2ImgPipeline", _depth, IMAGE),
    Entry("StableDiffusionUpscalePipeline", _upscale, {"prompt": PROMPT, "image": picture(16)}),
    Entry("StableDiffusionLatentUpscalePipeline", _latent_upscale, {"prompt": PROMPT, "image": picture(64)}),
    Entry(
        "StableDiffusionInstructPix2PixPipeline", lambda: parts(unet=build.unet(in_channels=8)),
        {"prompt": PROMPT, "image": picture(32), "image_guidance_scale": 1.5},
    ),
    Entry(
        "StableDiffusionImageVariationPipeline",
        lambda: {**without("text_encoder", "tokenizer"), **image_encoder()}, {"image": picture(32), "height": 32, "width": 32},
    ),
    Entry("LatentConsistencyModelPipeline", _lcm, TEXT),
    Entry("LatentConsistencyModelImg2ImgPipeline", _lcm, IMAGE),
    Entry("StableUnCLIPPipeline", _unclip, {**TEXT, "prior_num_inference_steps": 2}, idle=("image_normalizer",)),
    Entry(
        "StableUnCLIPImg2ImgPipeline",
        lambda: {**without(*SAFETY), **_unclip_noise(), **image_encoder()}, {**TEXT, "image": picture(32)},
        idle=("image_normalizer",),
    ),
    Entry("StableDiffusionPanoramaPipeline", parts, {**TEXT, "width": 48}, "views side by side"),
    Entry("StableDiffusionLDM3DPipeline",
          lambda: {**parts(vae=build.vae(in_channels=6, out_channels=6)), "image_encoder": None}, TEXT),
    Entry("StableDiffusionGLIGENPipeline", lambda: parts(unet=build.unet(attention_type="gated")), {
        **TEXT, "gligen_phrases": ["a red circle"], "gligen_boxes": [[0.1, 0.2, 0.5, 0.6]],
    }),
    Entry("SemanticStableDiffusionPipeline", parts, TEXT),
    Entry("CycleDiffusionPipeline", parts, {**IMAGE, "source_prompt": "a green star", "strength": 0.9}),
    Entry("MarigoldDepthPipeline", lambda: without(*SAFETY, "feature_extractor", unet=build.unet(in_channels=8)),
          {"image": picture(32), "processing_resolution": 0}),
    Entry("MarigoldNormalsPipeline", lambda: without(*SAFETY, "feature_extractor", unet=build.unet(in_channels=8)),
          {"image": picture(32), "processing_resolution": 0}, values=(-1.0, 1.0)),
    Entry("MarigoldIntrinsicsPipeline",
          lambda: without(*SAFETY, "feature_extractor", unet=build.unet(in_channels=12, out_channels=8)),
          {"image": picture(32), "processing_resolution": 0}),
]  # fmt: skip

register(ENTRIES)
