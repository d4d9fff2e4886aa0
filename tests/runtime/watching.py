"""Memory to be watched, and ways to look at it."""

import ctypes
import mmap

import numpy as np
import pytest
import torch

from diffusers_oneflow import engine

WriteWatch = engine.native().WriteWatch
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FIXED = 0x10
MADV_DONTNEED, MADV_HUGEPAGE = 4, 14


def place(*tensors):
    return [(t.data_ptr(), t.nbytes) for t in tensors]


def watch(*tensors, track=True):
    return WriteWatch(place(*tensors), track)


PROBE = torch.zeros(1 << 18)
TRACKS = watch(PROBE).tracked
needs_tracking = pytest.mark.skipif(not TRACKS, reason="this kernel does not track writes")
both = pytest.mark.parametrize("track", [True, False], ids=["tracked", "hashed"])


def mapped(size, address=0, flags=0, fd=-1):
    """The address of a private mapping, which no one frees but the test."""
    anonymous = mmap.MAP_ANONYMOUS if fd < 0 else 0
    at = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | anonymous | flags, fd, 0)
    assert at not in (None, ctypes.c_void_p(-1).value)
    return at


def view(address, size):
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)
