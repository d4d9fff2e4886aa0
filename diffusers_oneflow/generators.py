"""torch generators that draw in the place of OneFlow's."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from . import engine

# OneFlow generator -> its state when last seen, and the torch generator that draws in its place.
_twins: weakref.WeakKeyDictionary[Any, tuple[bytes, torch.Generator]] = weakref.WeakKeyDictionary()


def twin(generator: Any) -> torch.Generator:
    """The torch generator that goes on where a OneFlow generator stands.

    Fresh from its seed, it draws what torch draws from that seed. Seeding it again starts anew; numbers that
    OneFlow itself drew in between lead to another stream.
    """
    state = generator.get_state().numpy().tobytes()
    known = _twins.get(generator)
    if known is not None and known[0] == state:
        return known[1]
    # Made without a device it is "auto" and draws anywhere; torch's are then for the CPU, which pipelines on a GPU take too.
    device = torch.device("cpu") if generator.device.type == "auto" else torch.device(str(generator.device))
    seed = generator.initial_seed()
    if not _is_fresh(generator, state):
        import hashlib

        seed = int.from_bytes(hashlib.sha256(state).digest()[:8], "little")
    made = torch.Generator(device).manual_seed(seed)
    _twins[generator] = (state, made)
    return made


def _is_fresh(generator: Any, state: bytes) -> bool:
    flow = engine.flow()
    fresh = flow.Generator("auto" if generator.device.type == "auto" else str(generator.device))
    fresh.manual_seed(generator.initial_seed())
    if fresh.get_state().numpy().tobytes() == state:
        return True
    if generator.device.type != "auto":
        return False
    # The state of an "auto" generator grows by a device's part when it first draws there.
    flow.rand(1, generator=fresh)
    fresh.manual_seed(generator.initial_seed())
    return bool(fresh.get_state().numpy().tobytes() == state)


def forget(generator: Any) -> None:
    """OneFlow's generator has been seeded: what drew in its place is worth nothing now."""
    _twins.pop(generator, None)
