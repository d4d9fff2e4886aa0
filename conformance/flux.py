"""Flux and the transformers like it: Chroma, Bria, Ovis."""

from typing import Any

import diffusers
import torch
import transformers

from . import build
from . import stable_diffusion as sd
from .build import PROMPT, WIDTH, Maker
from .draw import picture
from .table import LATENT, Entry, register

SIZES = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip
FLUX = {**SIZES, "pooled_projection_dim": WIDTH}
TEXT = {**sd.TEXT, "max_sequence_length": 16}
IMAGE = {**TEXT, "image": picture(32), "strength": 1.0}
INPAINT = {**sd.INPAINT, "max_sequence_length": 16}
CONTROL = {"control_image": picture(32, seed=2)}


def parts(**changes: Any) -> dict[str, Any]:
    """What FluxPipeline is made of."""
    return {
        "transformer": diffusers.FluxTransformer2DModel(**{**FLUX, **changes.pop("transformer", {})}),
        "vae": build.vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": build.flow_match(), "tokenizer": build.tokenizer(), "text_encoder": build.clip_text(),
        "tokenizer_2": build.words(), "text_encoder_2": build.t5(), **changes,
    }  # fmt: skip


def controlled(count: int = 1, **options: Any) -> Maker:
    """The parts with one ControlNet or several."""

    def made() -> dict[str, Any]:
        nets = [build.stirred(diffusers.FluxControlNetModel(**{**FLUX, **options})) for _ in range(count)]
        return parts(controlnet=nets[0] if count == 1 else diffusers.FluxMultiControlNetModel(nets))

    return made


def t5_only(transformer: torch.nn.Module) -> dict[str, Any]:
    """Parts with T5 alone, around a transformer."""
    made = {k: v for k, v in parts().items() if k not in ("transformer", "tokenizer_2", "text_encoder_2")}
    return {**made, "transformer": transformer, "tokenizer": build.words(), "text_encoder": build.t5()}


def chroma() -> dict[str, Any]:
    """Chroma: the modulations come from one small network."""
    return t5_only(diffusers.ChromaTransformer2DModel(
        **SIZES, approximator_num_channels=8, approximator_hidden_dim=32, approximator_layers=1
    ))  # fmt: skip


def _bria() -> dict[str, Any]:
    return t5_only(diffusers.BriaTransformer2DModel(**{**SIZES, "axes_dims_rope": [0, 4, 12]}))


def _redux() -> dict[str, Any]:
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    config = transformers.SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    return {
        "image_encoder": transformers.SiglipVisionModel(config),
        "feature_extractor": transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        "image_embedder": ReduxImageEncoder(WIDTH, WIDTH),
        **{k: v for k, v in parts().items() if "text" in k or "token" in k},
    }


GUIDED = {"guidance_embeds": True}

ENTRIES = [
    Entry("FluxPipeline", parts, TEXT, "schnell: rotary embeddings, packed latents"),
    Entry("FluxPipeline", lambda: parts(transformer=GUIDED), TEXT, "dev: guidance as an input", "dev"),
    Entry("FluxPipeline", lambda: parts(transformer=GUIDED),
          {**TEXT, "negative_prompt": "blue", "true_cfg_scale": 2.0}, "with true guidance", "cfg"),
    Entry("FluxImg2ImgPipeline", parts, IMAGE),
    Entry("FluxInpaintPipeline", parts, INPAINT),
    Entry("FluxFillPipeline", lambda: parts(transformer={"in_channels": 48, "out_channels": 16, **GUIDED}), INPAINT),
    Entry("FluxControlPipeline", lambda: parts(transformer={"in_channels": 32, "out_channels": 16}), {**TEXT, **CONTROL}),
    Entry("FluxControlImg2ImgPipeline", lambda: parts(transformer={"in_channels": 32, "out_channels": 16}),
          {**IMAGE, **CONTROL}),
    Entry("FluxControlInpaintPipeline", lambda: parts(transformer={"in_channels": 32, "out_channels": 16}),
          {**INPAINT, **CONTROL}),
    Entry("FluxControlNetPipeline", controlled(), {**TEXT, **CONTROL}),
    Entry("FluxControlNetPipeline", controlled(2, num_mode=2), {
        **TEXT, "control_image": [picture(32), picture(32, seed=2)], "control_mode": [0, 1],
        "controlnet_conditioning_scale": [0.5, 0.7]}, "two ControlNets with modes", "multi"),
    Entry("FluxControlNetImg2ImgPipeline", controlled(), {**IMAGE, **CONTROL}),
    Entry("FluxControlNetInpaintPipeline", controlled(), {**INPAINT, **CONTROL}),
    Entry("FluxKontextPipeline", lambda: parts(transformer=GUIDED),
          {**TEXT, "image": picture(32), "max_area": 32 * 32, "_auto_resize": False}),
    Entry("FluxKontextInpaintPipeline", lambda: parts(transformer=GUIDED),
          {**INPAINT, "max_area": 32 * 32, "_auto_resize": False}),
    Entry("FluxPriorReduxPipeline", _redux, {"image": picture(32), "prompt": PROMPT}, values=LATENT),
    Entry("ChromaPipeline", chroma, TEXT),
    Entry("ChromaImg2ImgPipeline", chroma, IMAGE),
    # The pipeline asks for an entry that the model's configuration has not.
    Entry("ChromaInpaintPipeline", chroma, INPAINT, prepare=lambda p: p.transformer.register_to_config(guidance_embeds=False)),
    Entry("BriaPipeline", _bria, TEXT),
]  # fmt: skip

register(ENTRIES)
