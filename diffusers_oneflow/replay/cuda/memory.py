"""Scratch memory of the libraries' kernels: one block for each device and lane, since work of one lane runs in order."""

import contextlib
import functools
from collections.abc import Iterator

import torch

# What libraries may take. More lets them cut long sums into more parts; 32 MiB is what cuBLAS asks for on Hopper. What runs
# beside the rest is small.
_BYTES = (32 << 20, 8 << 20)


class _Lane:
    number = 0


def workspace(device: torch.device) -> torch.Tensor:
    """The block of the current lane, (bytes,) uint8."""
    return _blocks(device)[_Lane.number]


def size() -> int:
    """Bytes of the block of the current lane."""
    return _BYTES[_Lane.number]


@functools.cache
def _blocks(device: torch.device) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode(False):
        return tuple(torch.empty(sum(_BYTES), dtype=torch.uint8, device=device).split(_BYTES))


@contextlib.contextmanager
def lane(number: int) -> Iterator[None]:
    """What is launched inside runs beside the other lanes, and takes none of their memory."""
    before, _Lane.number = _Lane.number, number
    try:
        yield
    finally:
        _Lane.number = before
