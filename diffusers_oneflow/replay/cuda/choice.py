"""Choosing between kernels by measuring them, when a graph is built; what was found is kept on disk."""

import contextlib
import functools
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...cache import directory, write_whole

_TIMES, _WARM = 8, 1
# All measuring of one graph; then each kernel's favourite is taken as it is.
SECONDS = 6.0


class Budget:
    """How long may still be measured, in seconds."""

    left = SECONDS


@functools.cache
def _file(device: int) -> Path | None:
    """Of one kind of GPU and one set of libraries; None where nothing is kept on disk."""
    folder = directory()
    if folder is None:
        return None
    versions = (torch.cuda.get_device_name(device), torch.__version__, torch.version.cuda, torch.backends.cudnn.version())
    return folder / f"kernels-{hashlib.sha256(repr(versions).encode()).hexdigest()[:16]}.json"


@functools.cache
def _known(device: int) -> dict[str, int]:
    path = _file(device)
    try:
        found = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):  # none yet, or a damaged one: it is measured anew
        return {}
    return {k: v for k, v in found.items() if isinstance(v, int)} if isinstance(found, dict) else {}


def keep(device: int) -> None:
    """Write what was found to disk, and allow the next graph its time of measuring."""
    Budget.left = SECONDS
    path, known = _file(device), _known(device)
    if path is None or not known:
        return
    with contextlib.suppress(OSError):  # it is measured again in the next process
        write_whole(path, json.dumps(known).encode())


def fastest(key: Any, candidates: Sequence[Callable[[], Any]], device: torch.device, spare: int = 1) -> int:
    """The number of the candidate that takes the least time on the GPU; those that raise are out.

    Each is measured as it will run, in a CUDA graph: called from Python, small kernels all take as long as their launch.

    Args:
        key: what the answer depends on, beside the GPU and the libraries' versions.
        candidates: each computes the same on the same tensors.
        spare: so many of the last are for where none of the others can.

    Raises:
        torch.OutOfMemoryError: none has room.
        RuntimeError: none can compute it.
    """
    if device.type != "cuda":  # in Triton's interpreter: what needs no library of the GPU's comes last
        return len(candidates) - 1
    known, name = _known(device.index or 0), repr(key)
    number = known.get(name)
    if number is not None and number < len(candidates) and _works(candidates[number]):
        return number
    first = len(candidates) - spare
    try:
        known[name] = _measured(candidates[:first])
    except RuntimeError:
        known[name] = first + _measured(candidates[first:])
    return known[name]


def _works(candidate: Callable[[], Any]) -> bool:
    try:
        candidate()
    except RuntimeError:
        return False
    return True


def _measured(candidates: Sequence[Callable[[], Any]]) -> int:
    best, least = None, float("inf")
    reason: Exception = RuntimeError("there is no candidate")
    start = time.perf_counter()
    for number, candidate in enumerate(candidates):
        if best is not None and Budget.left < time.perf_counter() - start:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                candidate()
                took = _milliseconds(candidate)
        except Exception as error:  # whatever a library or Triton's compiler raises: another one can
            reason = error
            continue
        if took < least:
            best, least = number, took
    Budget.left -= time.perf_counter() - start
    if best is None:
        if isinstance(reason, torch.OutOfMemoryError):
            raise reason
        raise RuntimeError(f"no kernel computes this: {reason}")
    return best


def _milliseconds(candidate: Callable[[], Any]) -> float:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(_TIMES):
                candidate()
        finally:
            graph.capture_end()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(_WARM):
            graph.replay()
        took = []
        for _ in range(3):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            took.append(float(start.elapsed_time(end)))
    return min(took)
