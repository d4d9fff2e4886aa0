"""Finds the library for this processor and registers the pack with OneFlow."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

# Library -> the processor flags that it needs, best first.
_LIBRARIES = {
    "amx": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16"},
    "avx512bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "f16c"},
}
_registered: frozenset[str] = frozenset()
_module: ModuleType | None = None
_reason = "the engine has not been started"


def instruction_set() -> str | None:
    """The best of the libraries that this processor runs, or None.

    The environment variable DIFFUSERS_ONEFLOW_ISA names the best one to be used (amx, avx512bf16, avx512, avx2).

    Raises:
        ValueError: the variable names none.
    """
    names, best = list(_LIBRARIES), os.environ.get("DIFFUSERS_ONEFLOW_ISA", "amx")
    if best not in names:
        raise ValueError(f"DIFFUSERS_ONEFLOW_ISA={best!r} is no instruction set: use one of {', '.join(names)}")
    flags = _processor_flags()
    fit = (name for name in names[names.index(best) :] if _LIBRARIES[name] <= flags)
    return next((name for name in fit if name != "amx" or _may_use_tiles()), None)


@functools.cache
def _may_use_tiles() -> bool:
    """Ask Linux for AMX's tile registers, for the whole process: 8 KB that it adds to a thread's state at first use."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def register() -> None:
    """Register the pack's ops with OneFlow; `refusal` says why if that is not possible. Called once, by `engine.load`.

    OneFlow keeps pointers into its tables of kernels: this has to come before its first op.
    """
    global _registered, _module, _reason
    # Under mock torch OneFlow is there first, but the pack calls into the libraries of torch.
    importlib.import_module("torch")
    try:
        name = instruction_set()
    except ValueError as error:
        _reason = str(error)
        return
    if name is None:
        _reason = "the processor has no AVX2"
        return
    spec = importlib.util.find_spec(f"{__package__}._math_{name}")
    if spec is None or spec.origin is None or importlib.util.find_spec(f"{__package__}._pack") is None:
        _reason = "the kernel pack was not built: reinstall diffusers_oneflow with g++ available"
        return
    try:
        from . import _pack

        _registered, _module = frozenset(_pack.load(spec.origin)), _pack
        _reason = "" if _registered else "OneFlow does not take the pack's kernels"
    except ImportError as error:
        _reason = str(error)


def refusal() -> str:
    """Why the pack cannot be used here; empty if it can."""
    return _reason


def registered() -> frozenset[str]:
    """The pack's op types in OneFlow."""
    return _registered


def pack() -> Any:
    """The native module, or None where it cannot be used."""
    return _module
