"""Finds the program for a call: on disk, where an earlier process left it, or by capture and the passes.

What was captured is kept, a few kilobytes, and makes the capture for other sizes cheap (`retrace`), in other processes too.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import fingerprint, interop, passes, retrace, same_program, serialize, stored_values
from .cache import Cache, directory, key_of
from .capture import Program
from .libraries import Unknowable
from .passes import cast_weights
from .structure import Structure

if TYPE_CHECKING:
    import os

    import torch

# Of one module: the kinds of calls whose captured programs are kept in memory, and how many for each.
_KEPT, _VARIANTS = 8, 4


@dataclass
class Found:
    """A rewritten program and how it came to be.

    Attributes:
        rewrites: what the passes did.
        origin: "captured", "captured anew for these sizes" or "disk cache".
        seconds: of capture, or of reading, and of the passes.
    """

    program: Program
    rewrites: list[Any]
    origin: str
    seconds: dict[str, float]


class Programs:
    """The programs of one module.

    Args:
        cache: of `OneFlowConfig`.

    Attributes:
        refusal: why the latest program was not stored, or empty.
        differs: why torch.export had to capture other sizes, or empty.
    """

    def __init__(self, cache: str | os.PathLike[str] | bool | None) -> None:
        folder = directory(cache)
        # Asked for only where `_state` has found something, which takes a cache.
        self._cache: Any = Cache(folder) if folder is not None else None
        self.refusal = self.differs = ""
        # Captured programs, not rewritten: several where some sizes give other programs than others do.
        self._captured: OrderedDict[tuple[Any, ...], list[bytes]] = OrderedDict()

    def find(
        self,
        module: torch.nn.Module,
        structure: Structure,
        spec: tuple[Any, ...],
        tensors: list[Any],
        rest: tuple[Any, ...],
        native: bool,
        capture: Callable[..., Any],
    ) -> Found:
        """The program for a call.

        Args:
            spec: what the call holds beside tensors and numbers (`signature.Flat.spec`).
            tensors: what its graph takes, open numbers and strengths included; only shapes, strides and dtypes matter.
            rest: what else a program depends on; has the same `repr` in every process.
            native: whether it is for the kernel pack.
            capture: makes a new one, with the help of programs for other sizes if there are any; whatever it raises is handed on.
        """
        start = time.perf_counter()
        given, alike = _call(tensors, rest)
        state = self._state(module, spec)
        key = key_of("rewritten", state.digest, *given, native) if state else ""
        stored = self._load(key, structure, tensors, state.tensors) if state else None
        if stored is not None:
            return Found(*stored, "disk cache", {"capture": time.perf_counter() - start, "passes": 0.0})
        token = (structure.token, spec, alike)
        other = key_of("captured", state.digest, *alike) if state else None
        program, origin = self._reshaped(token, other, capture), "captured anew for these sizes"
        if program is None:
            program, origin = capture([]), "captured"
            retrace.tidy(program)
            self._keep(token, program)
        captured = time.perf_counter()
        rewrites = passes.run(program, native)
        seconds = {"capture": captured - start, "passes": time.perf_counter() - captured}
        # Code that capture has loaded, or that has changed meanwhile, has no part in the key.
        if state and (after := self._state(module, spec)) and after.digest == state.digest:
            self._store(key, program, rewrites, after.tensors)
            if origin == "captured":
                self._cache.store(other, b"".join(len(d).to_bytes(8, "little") + d for d in self._captured[token]))
        return Found(program, rewrites, origin, seconds)

    def forget(self) -> None:
        """Drop what is kept in memory."""
        self._captured.clear()

    def _reshaped(self, token: tuple[Any, ...], key: str | None, capture: Callable[..., Any]) -> Program | None:
        """A program made with those for other sizes; None if there are none, or if torch.export has to do it."""
        if token not in self._captured:
            self._captured[token] = self._read(key) if key else []
            while len(self._captured) > _KEPT:
                self._captured.popitem(last=False)
        if not self._captured[token]:
            return None
        try:
            made: Program = capture([serialize.loads(zlib.decompress(data))[0] for data in self._captured[token]])
            return made
        except same_program.Differs as reason:
            self.differs = str(reason)
            return None

    def _keep(self, token: tuple[Any, ...], program: Program) -> None:
        if len(self._captured[token]) < _VARIANTS:
            # Constants are compared by shape and dtype, which their nodes have; tables of a module may be large.
            bare = replace(program, constants={name: t.new_empty(0) for name, t in program.constants.items()})
            # One that cannot be written is captured each time.
            with contextlib.suppress(stored_values.Unwritable):
                self._captured[token].append(zlib.compress(serialize.dumps(bare), 1))

    def _read(self, key: str) -> list[bytes]:
        data: bytes = self._cache.load(key) or b""
        found = []
        while data:
            size = 8 + int.from_bytes(data[:8], "little")
            found.append(data[8:size])
            data = data[size:]
        try:
            for written in found:
                serialize.loads(zlib.decompress(written))
        except (stored_values.Unreadable, zlib.error) as reason:
            self._cache.reject(key, str(reason))
            return []
        return found

    def _state(self, module: torch.nn.Module, spec: tuple[Any, ...]) -> fingerprint.Fingerprint | None:
        """What the program depends on but for the call's tensors; None without a cache, or where that cannot be told."""
        if self._cache is None:
            return None
        try:
            self.refusal = ""
            return fingerprint.fingerprint(module, spec)
        except Unknowable as reason:
            self.refusal = f"it holds {reason}"
        except RecursionError:
            self.refusal = "it is nested too deeply"
        return None

    def _load(
        self, key: str, structure: Structure, tensors: list[Any], live: list[Any]
    ) -> tuple[Program, list[serialize.Pass]] | None:
        data = self._cache.load(key)
        if data is None:
            return None
        try:
            program, rewrites = serialize.loads(data, live)
            _check(program, structure, tensors)
        except stored_values.Unreadable as reason:
            self._cache.reject(key, str(reason))
            return None
        return program, rewrites

    def _store(self, key: str, program: Program, rewrites: list[Any], live: list[Any]) -> None:
        try:
            data = serialize.dumps(program, rewrites, live)
        except stored_values.Unwritable as reason:
            self.refusal = f"it holds {reason}"
            return
        self._cache.store(key, data)


def _call(tensors: list[Any], rest: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What a call gives to a key, and the same without sizes."""
    kinds = tuple((type(t).__qualname__, t.dtype, t.device, t.layout) for t in tensors)
    sizes = tuple((tuple(t.shape), t.stride(), t.is_conj(), t.is_neg()) for t in tensors)
    return (kinds, sizes, rest), (kinds, tuple(t.ndim for t in tensors), rest)


def _check(program: Program, structure: Structure, tensors: list[Any]) -> None:
    """A stored program must fit the module and the call: its key says that it does, and this costs nothing."""
    placeholders = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    weights = [(placeholders[name], structure.weights.get(qualified)) for name, qualified in program.weights.items()]
    pairs = [(placeholders[name], constant) for name, constant in program.constants.items()]
    if len(program.inputs) != len(tensors):
        raise stored_values.Unreadable("it takes another number of tensors")
    pairs += [(placeholders[name], tensor) for name, tensor in zip(program.inputs, map(interop.real, tensors))]
    for expected, given in pairs:
        if expected.shape != given.shape or expected.dtype != given.dtype:
            raise stored_values.Unreadable("its tensors are not those of the module")
    for expected, held in weights:
        if held is None or expected.shape != held.shape or expected.dtype not in {held.dtype, *cast_weights.targets(held.dtype)}:
            raise stored_values.Unreadable("its weights are not those of the module")
