"""Kandinsky 2.2 and 3, and unCLIP: a prior makes the embedding of an image, a decoder the image."""

from typing import Any

import diffusers
import torch

from . import build
from . import stable_diffusion as sd
from .build import PROMPT, WIDTH, Maker
from .draw import picture
from .table import LATENT, Entry, register
from .unconditional import unet2d


def movq() -> diffusers.VQModel:
    """The VAE, whose decoder is steered by the latents themselves; a factor of 8 like the UNet expects."""
    return diffusers.VQModel(
        block_out_channels=(32,) * 4, norm_num_groups=8, layers_per_block=1, latent_channels=4, num_vq_embeddings=12,
        vq_embed_dim=4, norm_type="spatial", down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


def decoder(channels: int = 4, hint: bool = False) -> dict[str, Any]:
    """What KandinskyV22Pipeline is made of."""
    unet = build.unet(
        in_channels=channels, out_channels=8, addition_embed_type="image_hint" if hint else "image", encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj", resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type="epsilon", thresholding=False,
    )  # fmt: skip
    return {"unet": unet, "scheduler": scheduler, "movq": movq()}


def prior() -> dict[str, Any]:
    """What KandinskyV22PriorPipeline is made of."""
    net = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=1,
        num_embeddings=build.tokenizer().model_max_length,
    )  # fmt: skip
    net.clip_std = torch.nn.Parameter(torch.ones(net.clip_std.shape))
    return {
        "prior": net, "text_encoder": build.clip_text(projected=True), "image_encoder": build.clip_vision(),
        "tokenizer": build.tokenizer(), "image_processor": build.clip_images(),
        "scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0
        ),
    }  # fmt: skip


def _combined() -> dict[str, Any]:
    return {**decoder(), **{f"prior_{name}": part for name, part in prior().items()}}


def _embeds(**more: Any) -> Maker:
    def made() -> dict[str, Any]:
        return {
            "image_embeds": torch.randn(1, WIDTH), "negative_image_embeds": torch.randn(1, WIDTH), "height": 64, "width": 64,
            **more,
        }  # fmt: skip

    return made


def _hint(**more: Any) -> Maker:
    return lambda: {**_embeds(**more)(), "hint": torch.rand(1, 3, 64, 64)}


def _third() -> dict[str, Any]:
    unet = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3, block_out_channels=(32, 64),
        cross_attention_dim=4, encoder_hid_dim=WIDTH,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, steps_offset=1)
    return {"unet": unet, "scheduler": scheduler, "movq": movq(),
            "text_encoder": build.t5(), "tokenizer": build.words(128)}  # fmt: skip


def _unclip(image: bool = False) -> dict[str, Any]:
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

    net = build.unet(
        sample_size=16, in_channels=3, out_channels=6, class_embed_type="identity", resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    large = {"in_channels": 6, "out_channels": 3, "sample_size": 32, "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
             "up_block_types": ("ResnetUpsampleBlock2D",) * 2, "resnet_time_scale_shift": "scale_shift"}  # fmt: skip
    text = prior()
    made = {
        "decoder": net, "text_encoder": text["text_encoder"], "tokenizer": text["tokenizer"],
        "text_proj": UnCLIPTextProjModel(
            clip_extra_context_tokens=4, clip_embeddings_dim=WIDTH, time_embed_dim=64, cross_attention_dim=WIDTH
        ),
        "super_res_first": unet2d(**large), "super_res_last": unet2d(**large),
        "decoder_scheduler": diffusers.UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        "super_res_scheduler": diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    }  # fmt: skip
    if image:
        return {**made, "image_encoder": text["image_encoder"], "feature_extractor": build.clip_images()}
    return {**made, "prior": text["prior"], "prior_scheduler": text["scheduler"]}


MOVQ = ("movq.encoder",)
IMAGE = {"image": picture(64), "strength": 1.0}
MASK = {"image": picture(64), "mask_image": sd.MASK.resize((64, 64))}
COMBINED = {"prompt": PROMPT, "height": 64, "width": 64, "prior_num_inference_steps": 2}
STEPS = {"decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2}

ENTRIES = [
    Entry("KandinskyV22Pipeline", decoder, _embeds(), idle=MOVQ),
    Entry("KandinskyV22Img2ImgPipeline", decoder, _embeds(**IMAGE)),
    Entry("KandinskyV22InpaintPipeline", lambda: decoder(9), _embeds(**MASK)),
    Entry("KandinskyV22ControlnetPipeline", lambda: decoder(8, True), _hint(), idle=MOVQ),
    Entry("KandinskyV22ControlnetImg2ImgPipeline", lambda: decoder(8, True), _hint(**IMAGE)),
    Entry("KandinskyV22PriorPipeline", prior, {"prompt": PROMPT, "output_type": "np"}, values=LATENT),
    Entry("KandinskyV22PriorEmb2EmbPipeline", prior,
          {"prompt": PROMPT, "image": picture(32), "strength": 0.8, "output_type": "np"}, values=LATENT),
    Entry("KandinskyV22CombinedPipeline", _combined, COMBINED, idle=MOVQ),
    Entry("KandinskyV22Img2ImgCombinedPipeline", _combined, {**COMBINED, **IMAGE}),
    Entry("KandinskyV22InpaintCombinedPipeline",
          lambda: {**decoder(9), **{f"prior_{name}": part for name, part in prior().items()}}, {**COMBINED, **MASK}),
    Entry("Kandinsky3Pipeline", _third, {"prompt": PROMPT, "height": 64, "width": 64}, idle=MOVQ),
    Entry("Kandinsky3Img2ImgPipeline", _third, {"prompt": PROMPT, "image": picture(64), "strength": 1.0}),
    Entry("UnCLIPPipeline", _unclip, {"prompt": PROMPT, "prior_num_inference_steps": 2, **STEPS}),
    Entry("UnCLIPImageVariationPipeline", lambda: _unclip(True), {"image": picture(32), **STEPS}),
]  # fmt: skip

register(ENTRIES)
