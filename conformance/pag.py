"""Perturbed-attention and self-attention guidance."""

from typing import Any

from . import build, controlnet, sdxl
from . import stable_diffusion as sd
from .build import PROMPT, Maker
from .draw import picture
from .table import Entry, register

PAG = {"pag_scale": 3.0}


def _hint(parts: Maker, pipeline: str, inputs: dict[str, Any]) -> Entry:
    return Entry(pipeline, controlnet.plain(parts), {**inputs, **PAG})


ENTRIES = [
    Entry("StableDiffusionPAGPipeline", sd.parts, {**sd.TEXT, **PAG}),
    Entry("StableDiffusionPAGPipeline", sd.parts, {**sd.TEXT, **PAG, "guidance_scale": 0.0}, "without other guidance", "alone"),
    Entry("StableDiffusionPAGImg2ImgPipeline", sd.parts, {**sd.IMAGE, **PAG}),
    Entry("StableDiffusionPAGInpaintPipeline", sd.parts, {**sd.INPAINT, **PAG}),
    Entry("StableDiffusionXLPAGPipeline", sdxl.parts, {**sd.TEXT, **PAG}),
    Entry("StableDiffusionXLPAGImg2ImgPipeline", sdxl.parts, {**sd.IMAGE, **PAG}),
    Entry("StableDiffusionXLPAGInpaintPipeline", sdxl.parts, {**sd.INPAINT, **PAG}),
    _hint(sd.parts, "StableDiffusionControlNetPAGPipeline", {"prompt": PROMPT, "image": picture(32)}),
    _hint(sd.parts, "StableDiffusionControlNetPAGInpaintPipeline", controlnet.INPAINT),
    _hint(sdxl.parts, "StableDiffusionXLControlNetPAGPipeline", {"prompt": PROMPT, "image": picture(32)}),
    _hint(sdxl.parts, "StableDiffusionXLControlNetPAGImg2ImgPipeline", controlnet.IMAGE),
    Entry("KolorsPAGPipeline", sdxl.kolors, {**sd.TEXT, **PAG, "max_sequence_length": 16},
          fallbacks=sdxl.DATA_DEPENDENT, module="diffusers.pipelines.pag.pipeline_pag_kolors"),
    Entry("StableDiffusionSAGPipeline", lambda: sd.parts(unet=build.early_unet()), {**sd.TEXT, "sag_scale": 0.75},
          fallbacks={"unet": "has forward hooks"}),
]  # fmt: skip

register(ENTRIES)
