"""All cases: importing this fills the registry."""

from . import (  # noqa: F401
    cascade,
    controlnet,
    demo,
    flux,
    full,
    ip_adapter,
    kandinsky,
    ops,
    pag,
    pixart_sana_etc,
    sd3,
    sdxl,
    stable_diffusion,
    tiny,
    unconditional,
    video,
    video_transformers,
)
