"""Weights in huge pages: those that are read as fast as memory gives them."""

import itertools
import mmap
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, engine

native = engine.native()
HUGE = 2 << 20


def in_huge_pages(address: int, size: int) -> int:
    """Bytes of the mappings that hold [address, address + size) that are in huge pages."""
    found, inside = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                begin, end = (int(part, 16) for part in head.split("-"))
                inside = begin < address + size and address < end
            elif inside and head == "AnonHugePages:":
                found += int(line.split()[1]) << 10
    return found


class Area:
    """Ordinary pages, filled."""

    def __init__(self, size: int):
        self.mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = np.frombuffer(self.mapping, np.uint32)
        self.view[:] = np.arange(size // 4)
        self.address, self.size = self.view.ctypes.data, size

    def unchanged(self) -> bool:
        return np.array_equal(self.view, np.arange(self.size // 4))


def collapses() -> bool:
    made = Area(2 * HUGE)
    return native.collapse_pages([(made.address, made.size)], True) > 0


needs_linux = pytest.mark.skipif(not collapses(), reason="this Linux has no MADV_COLLAPSE, or no huge page is free")


@needs_linux
def test_content_and_addresses_stay():
    made = Area(5 * HUGE)
    done = native.collapse_pages([(made.address, made.size)], True)
    assert 4 * HUGE <= done <= in_huge_pages(made.address, made.size)
    assert made.unchanged()


@needs_linux
def test_ranges_that_touch_are_one():
    made = Area(5 * HUGE)
    cuts = [0, HUGE // 2, HUGE + 4096, 3 * HUGE - 64, 5 * HUGE]
    parts = [(made.address + a, b - a) for a, b in itertools.pairwise(cuts)]
    assert native.collapse_pages(parts[::-1], True) >= 4 * HUGE
    assert made.unchanged()


def test_what_lies_beside_stays_as_it_is():
    made = Area(3 * HUGE)
    first = -(-made.address // HUGE) * HUGE
    assert native.collapse_pages([(first + 4096, HUGE), (first + HUGE + 8192, HUGE - 16384)], True) == 0


def test_what_is_no_memory_is_passed_over(tmp_path):
    made = Area(2 * HUGE)
    assert native.collapse_pages([(1 << 46, 4 * HUGE)], True) == 0
    assert native.collapse_pages([], True) == 0
    with pytest.raises(TypeError):
        native.collapse_pages([(made.address,)], True)


def gathered(rows: int, dtype=torch.float32, **options) -> int:
    """Bytes in huge pages for a linear layer of 36 MB; in a fresh process, where no test before has left any to malloc."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_gathered, rows, dtype, options).result()


@torch.no_grad()
def _gathered(rows: int, dtype: torch.dtype, options: dict) -> int:
    """The same in this process, once nothing more is moved."""
    layer = torch.nn.Linear(3072, 3072).to(dtype)
    address, size = layer.weight.data_ptr(), layer.weight.nbytes
    x = torch.randn(rows, 3072).to(dtype)
    expected = layer(x)
    before = total()
    diffusers_oneflow.compile(layer, OneFlowConfig(fallback="error", **options))
    made = layer(x)
    assert total() - before < 4 * HUGE  # not while the first result is waited for
    before = total()  # with the activations, which begin in huge pages
    layer(x), layer(x)
    end = time.monotonic() + 5
    while time.monotonic() < end and total() - before < size - 2 * HUGE:
        time.sleep(0.05)
    torch.testing.assert_close(layer(x), made, rtol=0, atol=0)
    torch.testing.assert_close(made, expected, rtol=1e-2, atol=1e-2)
    assert layer.weight.data_ptr() == address
    return total() - before


def total() -> int:
    """Bytes of this process in huge pages."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("AnonHugePages:"))


@needs_linux
def test_weights_of_few_rows_are_gathered_where_they_are():
    assert gathered(77) > 30 << 20
    assert gathered(512) < 4 << 20


@needs_linux
def test_packed_copies_are_gathered():
    assert gathered(512, torch.bfloat16) > 12 << 20
    assert gathered(512, weights="packed") > 30 << 20
