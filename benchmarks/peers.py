"""Who is compared: OneFlow and torch in its usual forms, each set up on a stock pipeline or module, in place."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator

PEERS = {
    "oneflow": "OneFlow graphs by this package",
    "torch": "torch eager, contiguous",
    "torch-channels-last": "torch eager, channels_last weights",
    "torch-compile": "torch.compile, default options",
    "torch-compile-freezing": "torch.compile with inductor's freezing (constant weights, packed)",
}
DEFAULT = ("oneflow", "torch", "torch-channels-last", "torch-compile")


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


def check(peer: str):
    """Raise ValueError for an unknown peer."""
    if peer not in PEERS:
        raise ValueError(f"unknown peer {peer!r}; there are {', '.join(PEERS)}")


def prepare(peer: str, modules: Iterable):
    """Let stock torch modules (a UNet, a text encoder, a whole VAE) run as `peer` does."""
    import torch

    check(peer)
    for module in modules:
        if peer == "oneflow":
            import diffusers_oneflow

            # An error instead of a fallback: a figure must not be torch's under OneFlow's name.
            diffusers_oneflow.compile(module, diffusers_oneflow.OneFlowConfig(fallback="error", progress=False))
        elif peer == "torch-channels-last":
            module.to(memory_format=torch.channels_last)
        elif peer.startswith("torch-compile"):
            if peer.endswith("freezing"):
                import torch._inductor.config

                torch._inductor.config.freezing = True
            # Pipelines call vae.decode, which only calls the decoder as a module.
            for part in (module.encoder, module.decoder) if hasattr(module, "decode") else (module,):
                part.compile()


def prepare_pipeline(peer: str, pipe):
    """Let a Stable Diffusion pipeline run as `peer` does, as a user would ask for it."""
    if peer == "oneflow":
        import diffusers_oneflow

        pipe.to(backend="oneflow", backend_config=diffusers_oneflow.OneFlowConfig(fallback="error", progress=False))
    else:
        prepare(peer, (pipe.unet, pipe.vae, pipe.text_encoder))
