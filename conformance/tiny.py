"""Single models with random weights."""

import torch

from diffusers_oneflow.parity import Report, component

from . import build
from .registry import case


@case("t5")
def t5() -> Report:
    """The T5 text encoder of SD 3, Flux and PixArt: relative positions, RMS norm, gated GELU."""
    torch.manual_seed(0)
    ids = torch.randint(0, build.VOCABULARY, (2, 20))
    return Report([component(build.t5().eval(), (ids,), {}, "t5")])
