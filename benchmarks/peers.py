"""Who is compared: OneFlow and torch in its usual forms, each set up on a stock pipeline or module, in place."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers_oneflow import OneFlowConfig

PEERS = {
    "oneflow": "OneFlow graphs by this package",
    "oneflow-packed": "the same with packed copies of the weights",
    "oneflow-release": "the same with packed weights alone in memory",
    "oneflow-own-kernels": "the same on OneFlow's own kernels alone",
    "torch": "torch eager, contiguous",
    "torch-channels-last": "torch eager, channels_last weights",
    "torch-autocast": "torch eager, float32 weights under torch.autocast to bfloat16",
    "torch-compile": "torch.compile, default options",
    "torch-compile-freezing": "torch.compile with inductor's freezing (constant weights, packed)",
    "openvino": "OpenVINO on the CPU, static shapes",
}
DEFAULT = ("oneflow", "torch", "torch-channels-last", "torch-compile")
DTYPES = ("float32", "bfloat16", "float16")
# What differs from the default options of the backend.
ONEFLOW: dict[str, dict[str, Any]] = {
    "oneflow": {},
    "oneflow-packed": {"weights": "packed"},
    "oneflow-release": {"weights": "release"},
    "oneflow-own-kernels": {"kernels": "oneflow"},
}
# They keep float32 weights and inputs, and compute in bfloat16 themselves.
_CAST_INSIDE = ("torch-autocast", "openvino")


@contextlib.contextmanager
def environment(peer: str) -> Iterator[None]:
    """Set what must be set before torch is imported; enter it first in a process of the peer's own.

    torch.compile gets an empty cache, gone afterwards: its compile time is then that of a first run.
    """
    check(peer)
    if not peer.startswith("torch-compile"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="inductor-", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        yield


def check(peer: str, dtype: str | None = None) -> None:
    """Raise ValueError for an unknown peer, and for one that does not compute in `dtype`."""
    if peer not in PEERS:
        raise ValueError(f"unknown peer {peer!r}; there are {', '.join(PEERS)}")
    if peer == "torch-autocast" and dtype not in (None, "bfloat16"):
        raise ValueError("torch-autocast is a peer for bfloat16 alone")


def cast(peer: str, pipe: Any, dtype: str) -> None:
    """Give the float32 models of `pipe` the dtype in which `peer` wants them to compute in `dtype`."""
    import torch

    if dtype != "float32" and peer not in _CAST_INSIDE:
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.to(getattr(torch, dtype))


def prepare(peer: str, modules: Iterable[Any], dtype: str = "float32") -> None:
    """Let stock torch modules (a UNet, a text encoder, a whole VAE), as `cast` leaves them, run as `peer` does."""
    import torch

    check(peer, dtype)
    for module in modules:
        if peer in ONEFLOW:
            import diffusers_oneflow

            diffusers_oneflow.compile(module, _config(peer))
        elif peer == "torch-channels-last":
            module.to(memory_format=torch.channels_last)
        elif peer.startswith("torch-compile"):
            if peer.endswith("freezing"):
                import torch._inductor.config

                torch._inductor.config.freezing = True
            for part in _parts(module):
                part.compile()
        elif peer == "torch-autocast":
            for part in _parts(module):
                part.forward = torch.autocast("cpu", torch.bfloat16)(part.forward)
        elif peer == "openvino":
            from . import openvino_peer

            for part in _parts(module):
                openvino_peer.attach(part, getattr(torch, dtype))
    if peer == "torch-autocast":
        # As if autocast were on outside as well: weights stay cast from call to call, as they do between an image's steps.
        torch.autocast_increment_nesting()


def prepare_pipeline(peer: str, pipe: Any, dtype: str = "float32") -> None:
    """Let a Stable Diffusion pipeline, as `cast` leaves it, run as `peer` does, as a user would ask for it."""
    if peer in ONEFLOW:
        check(peer, dtype)
        pipe.to(backend="oneflow", backend_config=_config(peer))
    else:
        prepare(peer, (pipe.unet, pipe.vae, pipe.text_encoder), dtype)


def _config(peer: str) -> OneFlowConfig:
    import diffusers_oneflow

    # An error instead of a fallback: a figure must not be torch's under OneFlow's name.
    return diffusers_oneflow.OneFlowConfig(fallback="error", progress=False, **ONEFLOW[peer])


def _parts(module: Any) -> tuple[Any, ...]:
    """What is called as a module: pipelines call vae.decode, which only calls the decoder as one."""
    return (module.encoder, module.decoder) if hasattr(module, "decode") else (module,)
