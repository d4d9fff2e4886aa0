"""Choosing between kernels by measuring them, when a graph is built."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

_TIMES = 8
_known: dict[Hashable, Any] = {}


def fastest(key: Hashable, candidates: Sequence[Any], compute: Callable[[Any], Any]) -> Any:
    """The candidate whose `compute(candidate)` takes the least time on the GPU; those that raise are out.

    It is measured as it will run, in a CUDA graph: called from Python, small kernels all take as long as their launch.

    Args:
        key: what the answer depends on; it is found once in a process.

    Raises:
        RuntimeError: none can compute it.
    """
    if key not in _known:
        _known[key] = _measured(candidates, compute)
    return _known[key]


def _measured(candidates: Sequence[Any], compute: Callable[[Any], Any]) -> Any:
    best, least, reason = None, float("inf"), None
    for candidate in candidates:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compute(candidate)
                took = _milliseconds(compute, candidate)
        except torch.OutOfMemoryError:
            continue
        except RuntimeError as error:
            reason = error
            continue
        if took < least:
            best, least = candidate, took
    if best is None:
        raise RuntimeError(f"no kernel computes this: {reason}")
    return best


def _milliseconds(compute: Callable[[Any], Any], candidate: Any) -> float:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(_TIMES):
                compute(candidate)
        finally:
            graph.capture_end()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end))
