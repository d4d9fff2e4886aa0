"""ControlNets and adapters of Stable Diffusion and Stable Diffusion XL."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from . import build, sdxl
from . import stable_diffusion as sd
from .build import PROMPT, Maker
from .draw import picture
from .table import Entry, register

# The VAE here halves each side once, so the ControlNet does too.
CONDITION = (16, 32)
HINT = picture(32, seed=2)
IMAGE = {**sd.IMAGE, "control_image": HINT}
INPAINT = {**sd.INPAINT, "control_image": HINT}


def _controlled(parts: Maker, make: Callable[[list[torch.nn.Module]], torch.nn.Module], count: int = 1) -> Maker:
    """`parts` with a ControlNet for their UNet, or a list of some."""

    def made() -> dict[str, Any]:
        given = parts()
        nets = [build.control(given["unet"], conditioning_embedding_out_channels=CONDITION).eval() for _ in range(count)]
        return {**given, "controlnet": nets[0] if count == 1 else make(nets)}

    return made


def _multi(nets: list[torch.nn.Module]) -> torch.nn.Module:
    made: torch.nn.Module = diffusers.MultiControlNetModel(nets)
    return made


def plain(parts: Maker, count: int = 1) -> Maker:
    """`parts` with one ControlNet, or several in a MultiControlNetModel."""
    return _controlled(parts, _multi, count)


def _union() -> dict[str, Any]:
    given = sdxl.parts()
    config = {k: given["unet"].config[k] for k in (
        "in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim",
        "attention_head_dim", "use_linear_projection", "transformer_layers_per_block", "addition_embed_type",
        "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    )}  # fmt: skip
    net = diffusers.ControlNetUnionModel(
        **config, conditioning_embedding_out_channels=CONDITION, num_control_type=6, num_trans_channel=16, num_trans_head=2,
        num_trans_layer=1, num_proj_channel=16,
    )  # fmt: skip
    return {**given, "controlnet": build.stirred(net)}


def _adapter(count: int = 1, **options: Any) -> torch.nn.Module:
    made: list[torch.nn.Module] = [
        build.stirred(diffusers.T2IAdapter(**{
            "in_channels": 3, "channels": [16, 32], "num_res_blocks": 1, "downscale_factor": 2,
            "adapter_type": "full_adapter", **options,
        }))
        for _ in range(count)
    ]  # fmt: skip
    several: torch.nn.Module = made[0] if count == 1 else diffusers.MultiAdapter(made)
    return several


def _xs(parts: Callable[..., dict[str, Any]], make: Callable[..., torch.nn.Module], **options: Any) -> Maker:
    """`parts` with the small ControlNet whose blocks are woven into the UNet's."""

    def made() -> dict[str, Any]:
        given = parts(unet=make(layers_per_block=2, **options))
        net = diffusers.ControlNetXSAdapter.from_unet(
            given["unet"], size_ratio=1.0, learn_time_embedding=True, conditioning_embedding_out_channels=CONDITION
        )
        return {**given, "controlnet": build.stirred(net)}

    return made


UNION = {"control_mode": [0]}
TWO_HINTS = {"prompt": PROMPT, "image": [HINT, picture(32, seed=3)], "controlnet_conditioning_scale": [1.0, 0.5]}

ENTRIES = [
    Entry("StableDiffusionControlNetPipeline", plain(sd.parts), {"prompt": PROMPT, "image": HINT}),
    Entry("StableDiffusionControlNetPipeline", plain(sd.parts, 2),
          TWO_HINTS,
          "two ControlNets", "multi"),
    Entry("StableDiffusionControlNetImg2ImgPipeline", plain(sd.parts), IMAGE),
    Entry("StableDiffusionControlNetInpaintPipeline", plain(sd.parts), INPAINT),
    Entry("StableDiffusionXLControlNetPipeline", plain(sdxl.parts), {"prompt": PROMPT, "image": HINT}),
    Entry("StableDiffusionXLControlNetPipeline", plain(sdxl.parts, 2),
          TWO_HINTS,
          "two ControlNets", "multi"),
    Entry("StableDiffusionXLControlNetImg2ImgPipeline", plain(sdxl.parts), IMAGE),
    Entry("StableDiffusionXLControlNetInpaintPipeline", plain(sdxl.parts), INPAINT),
    Entry("StableDiffusionXLControlNetUnionPipeline", _union, {**sd.TEXT, "control_image": [HINT], **UNION}),
    Entry("StableDiffusionXLControlNetUnionImg2ImgPipeline", _union, {**sd.IMAGE, "control_image": [HINT], **UNION}),
    Entry("StableDiffusionXLControlNetUnionInpaintPipeline", _union, {**sd.INPAINT, "control_image": [HINT], **UNION}),
    Entry("StableDiffusionAdapterPipeline", lambda: sd.parts(unet=build.early_unet(), adapter=_adapter()),
          {**sd.TEXT, "image": HINT}),
    Entry("StableDiffusionAdapterPipeline", lambda: sd.parts(unet=build.early_unet(), adapter=_adapter(2)),
          {**sd.TEXT, "image": [HINT, picture(32, seed=3)], "adapter_conditioning_scale": [0.5, 0.7]},
          "two adapters", "multi"),
    Entry("StableDiffusionAdapterPipeline",
          lambda: sd.parts(unet=build.unet(
              block_out_channels=(16, 32, 32), down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
              up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2), adapter=_adapter(adapter_type="light_adapter")),
          {**sd.TEXT, "image": HINT}, "a light adapter", "light"),
    Entry("StableDiffusionXLAdapterPipeline",
          lambda: sdxl.parts(adapter=_adapter(adapter_type="full_adapter_xl", channels=[16, 32], downscale_factor=4)),
          {**sd.TEXT, "image": HINT}),
    # Its layers are woven into the UNet, which runs on OneFlow as a whole.
    Entry("StableDiffusionControlNetXSPipeline", _xs(sd.parts, build.unet, attention_head_dim=4, use_linear_projection=True),
          {"prompt": PROMPT, "image": HINT}, idle=("controlnet",)),
    Entry("StableDiffusionXLControlNetXSPipeline", _xs(sdxl.parts, build.xl_unet), {"prompt": PROMPT, "image": HINT},
          idle=("controlnet",)),
]  # fmt: skip

register(ENTRIES)
