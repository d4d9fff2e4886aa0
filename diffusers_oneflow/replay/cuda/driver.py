"""NVIDIA's driver, as torch has loaded it, through its C interface.

Functions: cuda.h of CUDA 12, by the names that the driver exports them under.
"""

import ctypes
import functools
from ctypes import byref, c_uint, c_void_p
from typing import Any

import torch

_NON_BLOCKING = 1


@functools.cache
def library() -> ctypes.CDLL:
    """The library. Raises OSError where there is none."""
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *args: Any) -> None:
    """Call one of its functions. Raises RuntimeError for any other status than success."""
    if status := getattr(library(), name)(*args):
        raise RuntimeError(f"{name} returned status {status}")


@functools.cache
def stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The `number`-th stream of this package on `device`, which waits for no other.

    Torch makes 32 at once where one of its own is asked for: 73 MB on an H200.
    """
    made = c_void_p()
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # there is a context now
        call("cuStreamCreate", byref(made), c_uint(_NON_BLOCKING))
    return torch.cuda.ExternalStream(made.value, device)
