"""Finds the library for this processor and registers the pack with OneFlow."""

import functools
import importlib.util
from pathlib import Path

# Library -> the processor flags that it needs, best first.
_LIBRARIES = {
    "avx512bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "f16c"},
}
_registered: frozenset[str] = frozenset()
_module = None
_reason = "the engine has not been started"


def instruction_set() -> str | None:
    """The best of the libraries that this processor runs, or None."""
    flags = _processor_flags()
    return next((name for name, needed in _LIBRARIES.items() if needed <= flags), None)


@functools.cache
def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def register():
    """Register the pack's ops with OneFlow; `refusal` says why if that is not possible. Called once, by `engine.load`.

    OneFlow keeps pointers into its tables of kernels: this has to come before its first op.
    """
    global _registered, _module, _reason
    name = instruction_set()
    if name is None:
        _reason = "the processor has no AVX2"
        return
    spec = importlib.util.find_spec(f"{__package__}._math_{name}")
    if spec is None or importlib.util.find_spec(f"{__package__}._pack") is None:
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


def pack():
    """The native module, or None where it cannot be used."""
    return _module
