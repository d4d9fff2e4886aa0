"""Whether there is room for a graph on a GPU is asked before anything is built there."""

import pytest
import torch

from diffusers_oneflow.replay import nvidia

MIB = 1 << 20


@pytest.fixture
def gpu(monkeypatch):
    """A GPU without one: ``gpu(free, kept)`` in MiB, by the driver and in torch's cache, which can be given back."""
    state = {}

    def has(free, kept):
        state.update(free=free * MIB, kept=kept * MIB)
        return nvidia.Cuda("cuda:0")

    def empty_cache():
        state.update(free=state["free"] + state["kept"], kept=0)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (state["free"], 8 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: state["kept"] + MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: MIB)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    return has


@pytest.mark.parametrize("free, kept, size", [(400, 0, 100), (300, 100, 100), (10, 400, 100)])
def test_there_is_room(gpu, free, kept, size):
    gpu(free, kept).require(size * MIB)


@pytest.mark.parametrize("free, kept, size", [(300, 0, 100), (255, 0, 0), (10, 300, 100)])
def test_there_is_none(gpu, free, kept, size):
    with pytest.raises(torch.OutOfMemoryError, match=f"CUDA out of memory. A graph of {size} MiB.* {free + kept} MiB are free"):
        gpu(free, kept).require(size * MIB)
