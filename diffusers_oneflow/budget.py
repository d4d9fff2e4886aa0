"""How much memory all compiled graphs together may take, and which of them go when it is too much."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from . import engine

# What OneFlow itself and the descriptions of ops take, measured with Stable Diffusion's UNet (benchmarks/sizes.py).
BYTES_PER_OP = 120 << 10
# A GPU's memory is there for its graphs, each of which has activations of its own: this part of it they may take in any case.
_SHARE = 1 / 4
_CPU = torch.device("cpu")

_clock = itertools.count(1)
_lock = threading.Lock()


class Graph(Protocol):
    """A graph as it is counted here (`entries.Entry`).

    Attributes:
        device: where its activations are.
        bytes: what is its own.
        used: when it ran last, by `tick`.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def bytes(self) -> int: ...

    @property
    def used(self) -> int: ...


class Owner(Protocol):
    """Who has graphs (`dispatch.Dispatcher`)."""

    @property
    def entries(self) -> Sequence[Graph]: ...

    def evict(self, entry: Any) -> bool:
        """Drop one of its graphs; False if that cannot be now."""


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()


def join(owner: Owner) -> None:
    """Count someone's graphs from now on; who has them is held weakly."""
    with _lock:
        _owners.add(owner)


def tick() -> int:
    """The time of a use: larger than all before."""
    return next(_clock)


def used(device: torch.device = _CPU) -> int:
    """Bytes of all graphs on a device: the arena of activations, which those on the CPU share, and what is each one's own."""
    arena: int = engine.native().arena_bytes() if device.type == "cpu" else 0
    return arena + sum(entry.bytes for _, entry in _entries(device))


def keep_within(most: int, newest: Graph | str) -> int:
    """Drop the least recently used graphs of all models on the device of `newest`, never that one, until they are within bounds.

    These are `most` bytes, and on a GPU a quarter of its memory if that is more.
    Returns how many were dropped. Those of a model that is compiling in another thread just then are passed over.
    """
    device = _CPU if isinstance(newest, str) else newest.device
    if device.type == "cuda":
        most = max(most, int(_SHARE * torch.cuda.get_device_properties(device).total_memory))
    return _drop(device, most, newest)


def make_room(device: torch.device) -> int:
    """Drop all graphs on a device, for one that found no room; how many these were."""
    return _drop(device, 0, None)


def _drop(device: torch.device, most: int, newest: Graph | str | None) -> int:
    dropped = 0
    for owner, entry in sorted(_entries(device), key=lambda pair: pair[1].used):
        if used(device) <= most:
            break
        if entry is not newest and owner.evict(entry):
            dropped += 1
    return dropped


def _entries(device: torch.device) -> list[tuple[Owner, Graph]]:
    with _lock:
        owners = list(_owners)
    return [(owner, entry) for owner in owners for entry in owner.entries if entry.device == device]
