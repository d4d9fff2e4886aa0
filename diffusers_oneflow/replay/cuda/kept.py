"""What was found by measuring kernels, on disk: of one kind of GPU and one set of libraries."""

import contextlib
import functools
import hashlib
import json
from pathlib import Path

import torch

from ...cache import directory, version, write_whole
from . import cublaslt

# Packages whose kernels are measured too, where they are installed.
_PACKAGES = ("triton", "flash-attn-4", "quack-kernels", "nvidia-cutlass-dsl")


@functools.cache
def _file(device: int) -> Path | None:
    """None where nothing is kept on disk."""
    folder = directory()
    if folder is None:
        return None
    libraries = (torch.__version__, torch.version.cuda, torch.backends.cudnn.version(), cublaslt.version())
    versions = (torch.cuda.get_device_name(device), *libraries, *map(version, _PACKAGES))
    return folder / f"kernels-{hashlib.sha256(repr(versions).encode()).hexdigest()[:16]}.json"


@functools.cache
def known(device: int) -> dict[str, int]:
    """Number of the fastest way by what the answer depends on; whoever finds another one adds it."""
    path = _file(device)
    try:
        found = json.loads(path.read_text()) if path is not None else {}
    except (OSError, ValueError):  # none yet, or a damaged one: it is measured anew
        return {}
    return {k: v for k, v in found.items() if isinstance(v, int)} if isinstance(found, dict) else {}


def keep(device: int) -> None:
    """Write what is known to disk."""
    path, found = _file(device), known(device)
    if path is None or not found:
        return
    with contextlib.suppress(OSError):  # it is measured again in the next process
        write_whole(path, json.dumps(found).encode())
