"""How much memory all compiled graphs together may take, and which of them go when it is too much."""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING

from . import engine

if TYPE_CHECKING:
    from .dispatch import Dispatcher
    from .entries import Entry

# What OneFlow itself and the descriptions of ops take, measured with Stable Diffusion's UNet (benchmarks/sizes.py).
BYTES_PER_OP = 120 << 10

_clock = itertools.count(1)
_lock = threading.Lock()
_owners: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


def join(owner: Dispatcher) -> None:
    """Count the graphs of a dispatcher from now on; it is held weakly.

    Args:
        owner: has ``entries``, each with ``bytes`` and ``used``, and ``evict(entry) -> bool``.
    """
    with _lock:
        _owners.add(owner)


def tick() -> int:
    """The time of a use: larger than all before."""
    return next(_clock)


def used() -> int:
    """Bytes of all graphs: the arena of their activations, which they share, and what is each one's own."""
    arena: int = engine.native().arena_bytes()
    return arena + sum(entry.bytes for _, entry in _entries())


def keep_within(most: int, newest: Entry | str) -> int:
    """Drop the least recently used graphs of all models, never `newest`, until the rest is within `most` bytes.

    Returns how many were dropped. Those of a model that is compiling in another thread just then are passed over.
    """
    dropped = 0
    for owner, entry in sorted(_entries(), key=lambda pair: pair[1].used):
        if used() <= most:
            break
        if entry is not newest and owner.evict(entry):
            dropped += 1
    return dropped


def _entries() -> list[tuple[Dispatcher, Entry]]:
    with _lock:
        owners = list(_owners)
    return [(owner, entry) for owner in owners for entry in owner.entries]
