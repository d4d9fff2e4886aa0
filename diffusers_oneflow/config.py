"""Options of the backend."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class OneFlowConfig:
    """How models run on OneFlow.

    Args:
        fallback: ``"torch"`` runs a model that OneFlow cannot run in torch, with one warning;
            ``"error"`` raises `Unsupported` instead.
        progress: show a progress bar by stage while a large model is compiled; None shows it on a terminal only.
        max_graphs: compiled graphs kept per model; the least recently used one is dropped beyond that.
        max_bytes: of memory for compiled graphs, those of all attached models together: their activations, which share one
            arena, and what each one takes itself; some 100 MB for a UNet of 860 M parameters. Beyond it the least recently used
            ones are dropped, of whatever model; the newest stays. Weights, shared or packed, do not count. On a GPU each graph
            has activations of its own, and all of them may take a quarter of its memory in any case; where memory is short for
            a new one, all others go.
        kernels: ``"native"`` uses this package's kernel pack where it can be used (`doctor` says whether), and OneFlow's
            own kernels for the rest; ``"oneflow"`` uses OneFlow's own alone.
        weights: ``"packed"`` keeps a second copy of the weights of convolutions and linear layers, laid out as the
            kernels want them, and doubles the memory that they take; ``"shared"`` reads torch's own, without a copy, a few
            percent slower in float32 and half as fast in half types; ``"auto"`` packs half types only. ``"release"`` packs
            as well, and drops torch's own copy of float32 weights from memory: the parameters stay what they are, and who
            reads or writes them finds the right numbers, which come back from the packed copy when they are touched. They
            are dropped again at the next call, unless that happens in every call; detaching brings all of them back. It
            needs Linux 6.8 and the right to use userfaultfd; `EngineUnavailable` says what to do. Weights of half types,
            in groups, smaller than 64 KB, in shared memory or mapped from a file stay in memory. A debugger cannot read
            what is dropped.
        hoist: compute what depends only on the prompt, or only on the timestep, when these change (with the native kernels);
            None does so where that reads at least 32 MB of weights: noticing that nothing has changed takes 1 ms.
        cache: where captured programs are kept on disk for the next process: True for the folder that the environment
            variable ``DIFFUSERS_ONEFLOW_CACHE`` names ("0" or "off" for none), by default one in the user's cache; a path;
            or None for no cache. The files hold graphs, no weights, and at most 512 MB.
        cuda: models on an NVIDIA GPU run as CUDA graphs that OneFlow plans (`replay`); False leaves them in torch. Tried on
            H200s, and on no other GPU.

    Raises:
        ValueError: a value outside of these.
    """

    fallback: str = "torch"
    progress: bool | None = None
    max_graphs: int = 16
    max_bytes: int = 2 << 30
    kernels: str = "native"
    weights: str = "auto"
    hoist: bool | None = None
    cache: str | os.PathLike[str] | bool | None = True
    cuda: bool = True

    def __post_init__(self) -> None:
        if self.fallback not in ("torch", "error"):
            raise ValueError(f'fallback is {self.fallback!r}; it must be "torch" or "error"')
        if self.progress not in (None, True, False):
            raise ValueError(f"progress is {self.progress!r}; it must be True, False or None")
        if self.kernels not in ("native", "oneflow"):
            raise ValueError(f'kernels is {self.kernels!r}; it must be "native" or "oneflow"')
        if self.weights not in ("auto", "packed", "shared", "release"):
            raise ValueError(f'weights is {self.weights!r}; it must be "auto", "packed", "shared" or "release"')
        if not isinstance(self.max_graphs, int) or self.max_graphs < 1:
            raise ValueError(f"max_graphs is {self.max_graphs!r}; it must be an integer of at least 1")
        if not isinstance(self.max_bytes, int) or self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes!r}; it must be an integer of at least 1, in bytes")
        if self.cuda not in (True, False):
            raise ValueError(f"cuda is {self.cuda!r}; it must be True or False")
        if not isinstance(self.cache, (str, os.PathLike, bool, type(None))):
            raise ValueError(f"cache is {self.cache!r}; it must be a path, True or None")
