"""What libraries clear inside a CUDA graph is cleared by kernels: for a memset between two of them the GPU waits longer.

Structures: cuda.h of CUDA 12; functions without ``_v2`` know edges of one kind only, and so are asked about memsets alone.
"""

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch

from . import driver, kernels
from .light import blocks

_KERNEL, _MEMSET = 0, 2
# Words of one program; bytes up to which kernels are as fast as the GPU's own way.
_WORDS, _MOST_BYTES = 1024, 1 << 20


class _Memset(ctypes.Structure):
    _fields_ = (("place", c_uint64), ("pitch", c_size_t), ("value", c_uint), ("size", c_uint), ("width", c_size_t),
                ("height", c_size_t))  # fmt: skip


class _Kernel(ctypes.Structure):
    _fields_ = (("function", c_void_p), ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint),
                ("arguments", ctypes.POINTER(ctypes.POINTER(c_uint64))), ("extra", c_void_p), ("kernel", c_void_p),
                ("context", c_void_p))  # fmt: skip


def replace(graph: torch.cuda.CUDAGraph, device: torch.device) -> int:
    """Put a kernel in the place of each small memset; returns how many there were.

    Args:
        graph: captured with ``keep_graph=True`` and not instantiated yet.
    """
    whole = c_void_p(graph.raw_cuda_graph())
    try:
        found: dict[int | None, _Found] = {node.value: _Found.of(node, made) for node, made in _memsets(whole)}
    except (OSError, AttributeError, RuntimeError):  # a driver that says it otherwise: the memsets are right, and slower
        return 0
    if not found:
        return 0
    with torch.cuda.device(device):
        clearing = _captured(dict.fromkeys(one.span for one in found.values()), device)
    kernels_by_span = {}
    for node in _nodes(c_void_p(clearing.raw_cuda_graph()), _KERNEL):
        kernel = _Kernel()
        driver.call("cuGraphKernelNodeGetParams_v2", node, byref(kernel))
        kernels_by_span[kernel.arguments[0][0], 4 * (kernel.arguments[1][0] & 0xFFFFFFFF)] = kernel
    new: dict[int | None, int | None] = {}
    for old, one in found.items():
        added = c_void_p()
        driver.call("cuGraphAddKernelNode_v2", byref(added), whole, None, c_size_t(0), byref(kernels_by_span[one.span]))
        new[old] = added.value
    for old, one in found.items():
        edges = [(new.get(other, other), new[old]) for other in one.before]
        edges += [(new[old], other) for other in one.after if other not in found]
        if edges:
            first, then = (_array(ends) for ends in zip(*edges))
            driver.call("cuGraphAddDependencies", whole, first, then, c_size_t(len(edges)))
    for old in found:
        driver.call("cuGraphDestroyNode", c_void_p(old))
    return len(found)


@dataclass(frozen=True)
class _Found:
    """A memset: what it clears, (address, bytes), and the nodes before and after it."""

    span: tuple[int, int]
    before: list[int | None]
    after: list[int | None]

    @staticmethod
    def of(node: c_void_p, made: _Memset) -> "_Found":
        before, after = (_neighbours(name, node) for name in ("cuGraphNodeGetDependencies", "cuGraphNodeGetDependentNodes"))
        return _Found((made.place, made.size * made.width), before, after)


def _memsets(graph: c_void_p) -> Iterator[tuple[c_void_p, _Memset]]:
    """Those that a kernel can do."""
    for node in _nodes(graph, _MEMSET):
        made = _Memset()
        driver.call("cuGraphMemsetNodeGetParams", node, byref(made))
        size = made.size * made.width
        if made.value == 0 and made.height == 1 and size <= _MOST_BYTES and size % 4 == made.place % 4 == 0:
            yield node, made


def load() -> None:
    """Compile the kernel, which a capture could not wait for."""
    scratch = torch.zeros(1, dtype=torch.int32, device="cuda")
    _clear(scratch.data_ptr(), 4)
    torch.cuda.current_stream().synchronize()


def _captured(spans: Iterable[tuple[int, int]], device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph of kernels that clear these places, (address, bytes) each."""
    load()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    # Not on torch's own stream for captures, which belongs to the first GPU.
    with torch.cuda.graph(graph, stream=driver.stream(device, 2), capture_error_mode="thread_local"):
        for place, size in spans:
            _clear(place, size)
    return graph


def _clear(place: int, size: int) -> None:
    kernels.clear_kernel[blocks(size // 4, _WORDS)](place, size // 4, _WORDS, num_warps=4)


def _nodes(graph: c_void_p, kind: int) -> list[c_void_p]:
    count = c_size_t()
    driver.call("cuGraphGetNodes", graph, None, byref(count))
    nodes = (c_void_p * count.value)()
    driver.call("cuGraphGetNodes", graph, nodes, byref(count))
    found = []
    for address in nodes[: count.value]:
        node, is_a = c_void_p(address), c_uint()
        driver.call("cuGraphNodeGetType", node, byref(is_a))
        if is_a.value == kind:
            found.append(node)
    return found


def _neighbours(name: str, node: c_void_p) -> list[int | None]:
    count = c_size_t()
    driver.call(name, node, None, byref(count))
    nodes = (c_void_p * count.value)()
    if nodes:  # an empty array is refused
        driver.call(name, node, nodes, byref(count))
    return list(nodes)


def _array(nodes: Sequence[int | None]) -> Any:
    return (c_void_p * len(nodes))(*nodes)
