"""Stable Diffusion 3: two CLIPs, T5, and the joint transformer."""

from typing import Any

import diffusers

from . import build
from . import stable_diffusion as sd
from .build import WIDTH, Maker
from .draw import picture
from .table import Entry, register

# T5's embeddings are as wide as both CLIPs together; they are padded up to it.
SIZES = {
    "sample_size": 16, "patch_size": 2, "in_channels": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
    "joint_attention_dim": 2 * WIDTH, "caption_projection_dim": WIDTH, "pooled_projection_dim": 2 * WIDTH, "out_channels": 8,
    "pos_embed_max_size": 16,
}  # fmt: skip
TEXT = {**sd.TEXT, "max_sequence_length": 16}
IMAGE = {**sd.IMAGE, "height": 32, "width": 32, "max_sequence_length": 16}
INPAINT = {**sd.INPAINT, "max_sequence_length": 16}


def parts(**changes: Any) -> dict[str, Any]:
    """What StableDiffusion3Pipeline is made of."""
    channels = changes.pop("channels", 8)
    sizes = {**SIZES, "in_channels": channels, "out_channels": channels, **changes.pop("transformer", {})}
    return {
        "transformer": build.stirred(diffusers.SD3Transformer2DModel(**sizes)),
        "vae": build.vae(channels, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": build.flow_match(shift=3.0), "tokenizer": build.tokenizer(), "tokenizer_2": build.tokenizer(),
        "text_encoder": build.clip_text(projected=True), "text_encoder_2": build.clip_text(projected=True),
        "tokenizer_3": build.words(), "text_encoder_3": build.t5(d_model=2 * WIDTH), **changes,
    }  # fmt: skip


def controlled(count: int = 1, **options: Any) -> Maker:
    """The parts with one ControlNet or several."""

    def made() -> dict[str, Any]:
        nets = [build.stirred(diffusers.SD3ControlNetModel(**{**SIZES, "num_layers": 1, **options})) for _ in range(count)]
        return parts(controlnet=nets[0] if count == 1 else diffusers.SD3MultiControlNetModel(nets))

    return made


PAG = {"pag_scale": 0.7}

ENTRIES = [
    Entry("StableDiffusion3Pipeline", parts, TEXT, "two CLIPs, T5 and the joint transformer"),
    Entry("StableDiffusion3Pipeline", lambda: parts(
        transformer={"qk_norm": "rms_norm", "dual_attention_layers": (0,)}, **build.none("text_encoder_3", "tokenizer_3")),
        TEXT, "3.5: normed queries and keys, dual attention; without T5", "v3.5"),
    Entry("StableDiffusion3Img2ImgPipeline", parts, IMAGE),
    Entry("StableDiffusion3InpaintPipeline", lambda: parts(channels=16), INPAINT, "on a transformer of plain channels"),
    Entry("StableDiffusion3InpaintPipeline", lambda: parts(channels=16, transformer={"in_channels": 33}), INPAINT,
          "on mask channels", "mask"),
    Entry("StableDiffusion3ControlNetPipeline", controlled(), {**TEXT, "control_image": picture(32)}),
    Entry("StableDiffusion3ControlNetPipeline", controlled(2),
          {**TEXT, "control_image": [picture(32), picture(32, seed=1)], "controlnet_conditioning_scale": [0.5, 0.7]},
          "two ControlNets", "multi"),
    Entry("StableDiffusion3ControlNetInpaintingPipeline", controlled(extra_conditioning_channels=1),
          {**TEXT, "control_image": picture(32), "control_mask": sd.MASK}),
    Entry("StableDiffusion3PAGPipeline", lambda: parts(pag_applied_layers=["blocks.0"]), {**TEXT, **PAG}),
    Entry("StableDiffusion3PAGImg2ImgPipeline", lambda: parts(pag_applied_layers=["blocks.0"]), {**IMAGE, **PAG}),
]  # fmt: skip

register(ENTRIES)
