"""Captured programs on disk, for processes to come.

A file is named after a digest of everything that its program depends on, and says its own length and digest: what is
truncated, foreign or damaged is ignored with a warning. Files are written beside their place and moved there, so that any
number of processes may read and write, and one that is killed leaves nothing but a file that the next ones remove.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import re
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CacheWarning

VARIABLE = "DIFFUSERS_ONEFLOW_CACHE"
# All files together; beyond it the least recently used go.
MOST_BYTES = 512 << 20
_MAGIC = b"diffusers_oneflow program 1\n"
_ENDING, _PART_START, _PART = ".program", "diffusers_oneflow-unfinished-", ".part"
# The folder may be any that the user names: nothing else in it is touched.
_OWN = re.compile(rf"[0-9a-f]{{64}}{re.escape(_ENDING)}|{_PART_START}\w+{re.escape(_PART)}")
# After so many seconds a file that was never finished belongs to a process that is gone.
_ABANDONED = 3600.0
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "oneflow", "numpy", "safetensors")


@dataclass(frozen=True)
class Usage:
    """What a cache holds: number of programs, and bytes of their files."""

    programs: int
    bytes: int


def directory(option: str | os.PathLike[str] | bool | None = True) -> Path | None:
    """The folder that a value of `OneFlowConfig.cache` stands for; None for no cache.

    A path is itself. True is what the environment variable ``DIFFUSERS_ONEFLOW_CACHE`` names ("0" or "off": no cache), or
    else a folder of the user's cache. None and False are no cache.
    """
    if option is None or option is False:
        return None
    if option is not True:
        return Path(option).expanduser()
    named = os.environ.get(VARIABLE, "")
    if named.strip().lower() in ("0", "off", "no", "false"):
        return None
    if named.strip():
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("diffusers_oneflow", appauthor=False) / "programs"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there; a folder that is not there is made. Raises OSError where it cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(_PART, _PART_START, path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


class Cache:
    """The programs in one folder.

    Args:
        folder: made when the first program is stored.
        most_bytes: of all files together.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.most_bytes = Path(folder), most_bytes

    def load(self, key: str) -> bytes | None:
        """What was stored under `key` (64 hexadecimal digits), or None; a file that is not sound is removed with a warning."""
        path = self.folder / f"{key}{_ENDING}"
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _warn(f"the stored program {path} cannot be read ({error.strerror}) and is captured anew")
            return None
        reason, content = _open(key, data)
        if reason:
            self.reject(key, reason)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used go first
        return content

    def reject(self, key: str, reason: str) -> None:
        """Remove a file that is not what it should be, with a warning."""
        path = self.folder / f"{key}{_ENDING}"
        _warn(f"the stored program {path} is ignored and removed: {reason}")
        with contextlib.suppress(OSError):
            path.unlink()

    def store(self, key: str, content: bytes) -> None:
        """Store `content` under `key`; where that is not possible there is a warning, no error."""
        try:
            write_whole(self.folder / f"{key}{_ENDING}", _closed(key, content))
        except OSError as error:
            _warn(f"a program could not be stored in {self.folder} ({error.strerror}); set {VARIABLE} to another folder, or to 0")
            return
        self._tidy()

    def usage(self) -> Usage:
        """What the cache holds now."""
        files = [size for _, size, path in self._files() if path.endswith(_ENDING)]
        return Usage(len(files), sum(files))

    def clear(self) -> Usage:
        """Remove every program, and files that were never finished; returns what there was. Other files stay."""
        before = self.usage()
        for _, _, path in self._files():
            with contextlib.suppress(OSError):
                os.unlink(path)
        return before

    def _files(self) -> list[tuple[float, int, str]]:
        """``(time of last use, bytes, path)`` of the files that are the cache's own, the least recently used first."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if _OWN.fullmatch(entry.name):
                    with contextlib.suppress(OSError):  # another process has just removed it
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, entry.path))
        return sorted(found)

    def _tidy(self) -> None:
        files = self._files()
        total = sum(size for _, size, _ in files)
        for used, size, path in files:
            abandoned = path.endswith(_PART) and time.time() - used > _ABANDONED
            if abandoned or (total > self.most_bytes and path.endswith(_ENDING)):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                total -= size


def key_of(*parts: object) -> str:
    """The digest of what a program depends on, versions of packages and this package's own code included.

    Args:
        parts: strings, or what has a `repr` that is the same in every process and differs for what is not equal.
    """
    made = hashlib.sha256(_versions().encode())
    for part in parts:
        data = repr(part).encode()
        made.update(len(data).to_bytes(8, "little") + data)
    return made.hexdigest()


def version(package: str) -> str | None:
    """Of what is loaded, since the metadata on disk may have been replaced; else of what is installed, or None."""
    found: str | None = getattr(sys.modules.get(package), "__version__", None)
    if found is None:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(package)
    return found


@functools.cache
def _versions() -> str:
    versions = [sys.version, *(f"{name} {version(name)}" for name in PACKAGES)]
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "version"):
        versions += [f"{part} {getattr(torch.version, part, None)}" for part in ("git_version", "cuda", "debug")]
    return "\n".join([*versions, _own_code()])


def _own_code() -> str:
    made = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.glob("*.py")) + sorted(
        p for part in ("passes", "lowering", "kernels") for p in (root / part).glob("*.py")
    ):
        made.update(str(path.relative_to(root)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()


def _closed(key: str, content: bytes) -> bytes:
    return b"".join((_MAGIC, key.encode(), len(content).to_bytes(8, "little"), hashlib.sha256(content).digest(), content))


def _open(key: str, data: bytes) -> tuple[str, bytes]:
    """``(why a file is not sound, its content)``."""
    head = len(_MAGIC) + 64 + 8 + 32
    if not data.startswith(_MAGIC):
        return "it was not written by this package", b""
    if len(data) < head or len(data) != head + int.from_bytes(data[head - 40 : head - 32], "little"):
        return "its length is wrong", b""
    if data[len(_MAGIC) : len(_MAGIC) + 64] != key.encode():
        return "it belongs under another name", b""
    if hashlib.sha256(data[head:]).digest() != data[head - 32 : head]:
        return "its content is damaged", b""
    return "", data[head:]


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=3)
