"""IP-Adapters: images as prompts, with weights made here."""

from collections.abc import Callable
from typing import Any

import torch

from . import build, controlnet, sdxl
from . import stable_diffusion as sd
from .draw import picture
from .table import Entry, register


def weights(unet: Any, plus: bool = False, seed: int = 0) -> dict[str, Any]:
    """The state dict of an IP-Adapter for a UNet: projections of the image, keys and values for each cross-attention."""
    generator = torch.Generator().manual_seed(seed)
    width, cross = build.WIDTH, unet.config.cross_attention_dim

    def made(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    attention: dict[str, torch.Tensor] = {}
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn1.processor") or "motion_modules" in name:
            continue
        hidden = dict(unet.named_modules())[name.removesuffix(".processor")].to_k.out_features
        attention |= {f"{number}.to_k_ip.weight": made(hidden, cross), f"{number}.to_v_ip.weight": made(hidden, cross)}
        number += 2
    if plus:
        return {"image_proj": _resampler(made, width, cross), "ip_adapter": attention}
    image = {
        "proj.weight": made(4 * cross, width), "proj.bias": made(4 * cross), "norm.weight": 1 + made(cross),
        "norm.bias": made(cross),
    }  # fmt: skip
    return {"image_proj": image, "ip_adapter": attention}


def _resampler(made: Callable[..., torch.Tensor], width: int, cross: int) -> dict[str, torch.Tensor]:
    """The image projection of "plus": latents that attend to the patches; heads of 64 as diffusers expects."""
    inner = 64
    state = {
        "latents": made(1, 4, inner), "proj_in.weight": made(inner, width), "proj_in.bias": made(inner),
        "proj_out.weight": made(cross, inner), "proj_out.bias": made(cross), "norm_out.weight": 1 + made(cross),
        "norm_out.bias": made(cross),
    }  # fmt: skip
    for layer in range(4):  # as many as diffusers builds
        at = f"layers.{layer}"
        state |= {f"{at}.0.norm{i}.{kind}": made(inner) for i in (1, 2) for kind in ("weight", "bias")}
        state |= {
            f"{at}.0.to_q.weight": made(inner, inner), f"{at}.0.to_kv.weight": made(2 * inner, inner),
            f"{at}.0.to_out.weight": made(inner, inner), f"{at}.1.0.weight": 1 + made(inner), f"{at}.1.0.bias": made(inner),
            f"{at}.1.1.weight": made(4 * inner, inner), f"{at}.1.3.weight": made(inner, 4 * inner),
        }  # fmt: skip
    return state


def load(count: int = 1, plus: bool = False) -> Callable[[Any], None]:
    """A function that loads `count` adapters into a pipeline."""

    def prepare(pipe: Any) -> None:
        adapters = [weights(pipe.unet, plus and i == 0, i) for i in range(count)]
        pipe.load_ip_adapter(adapters, subfolder="", weight_name=[""] * count, image_encoder_folder=None)
        pipe.set_ip_adapter_scale(0.7 if count == 1 else [0.7, 0.4][:count])
        pipe.unet.eval()

    return prepare


IP = {"ip_adapter_image": picture(32, seed=4)}


def _sd() -> dict[str, Any]:
    return sd.parts(**sd.image_encoder())


def _xl() -> dict[str, Any]:
    return sdxl.parts(**sd.image_encoder())


ENTRIES = [
    Entry("StableDiffusionPipeline", _sd, {**sd.TEXT, **IP}, "with an IP-Adapter", "ip-adapter", load()),
    Entry("StableDiffusionPipeline", _sd, {**sd.TEXT, **IP}, "with an IP-Adapter whose scale changes", "ip-adapter-changed",
          load(), change=lambda pipe: pipe.set_ip_adapter_scale(0.1)),
    Entry("StableDiffusionPipeline", _sd, {**sd.TEXT, **IP}, "with an IP-Adapter of the kind plus", "ip-adapter-plus",
          load(plus=True)),
    Entry("StableDiffusionPipeline", _sd, {**sd.TEXT, "ip_adapter_image": [picture(32, seed=4), picture(32, seed=5)]},
          "with two IP-Adapters", "ip-adapters", load(2, plus=True)),
    Entry("StableDiffusionXLPipeline", _xl, {**sd.TEXT, **IP}, "with an IP-Adapter", "ip-adapter", load()),
    Entry("StableDiffusionXLPipeline", _xl, {**sd.TEXT, **IP}, "with an IP-Adapter of the kind plus", "ip-adapter-plus",
          load(plus=True)),
    Entry("StableDiffusionControlNetPipeline", controlnet.plain(_sd), {"prompt": build.PROMPT, "image": picture(32), **IP},
          "with an IP-Adapter", "ip-adapter", load()),
]  # fmt: skip

register(ENTRIES)
