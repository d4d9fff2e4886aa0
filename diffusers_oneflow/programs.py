"""Finds the program for a call: on disk, where an earlier process left it, or by capture and the passes.

What was captured is kept, a few kilobytes, and makes the capture for other sizes cheap (`retrace`), in other processes too.
"""

import contextlib
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import fingerprint, passes, retrace, serialize
from .cache import Cache, directory, key_of
from .capture import Program
from .signature import Flat
from .structure import Structure

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
    rewrites: list
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

    def __init__(self, cache):
        folder = directory(cache)
        self._cache = Cache(folder) if folder is not None else None
        self.refusal = self.differs = ""
        # Captured programs, not rewritten: several where some sizes give other programs than others do.
        self._captured: OrderedDict[tuple, list[bytes]] = OrderedDict()

    def find(
        self, module, structure: Structure, call: Flat, tensors: list, opened: bool, native: bool, capture: Callable
    ) -> Found:
        """The program for a call.

        Args:
            tensors: of the call, its open numbers included; only shapes and dtypes matter.
            opened: whether the call's numbers are among the tensors, and not part of the program.
            native: whether it is for the kernel pack.
            capture: makes a new one, with the help of programs for other sizes if there are any; whatever it raises is handed on.
        """
        start = time.perf_counter()
        digest = self._digest(module, call)
        given, alike = _call(call, tensors, opened)
        key = key_of("rewritten", digest, *given, native) if digest else None
        stored = self._load(key, structure, tensors) if digest else None
        if stored is not None:
            return Found(*stored, "disk cache", {"capture": time.perf_counter() - start, "passes": 0.0})
        token = (structure.token, call.spec, alike)
        other = key_of("captured", digest, *alike) if digest else None
        program, origin = self._reshaped(token, other, capture), "captured anew for these sizes"
        if program is None:
            program, origin = capture([]), "captured"
            retrace.tidy(program)
            self._keep(token, program)
        captured = time.perf_counter()
        rewrites = passes.run(program, native)
        seconds = {"capture": captured - start, "passes": time.perf_counter() - captured}
        # Code that capture has loaded, or that has changed meanwhile, has no part in the key.
        if digest and digest == self._digest(module, call):
            self._store(key, program, rewrites)
            if origin == "captured":
                self._cache.store(other, b"".join(len(d).to_bytes(8, "little") + d for d in self._captured[token]))
        return Found(program, rewrites, origin, seconds)

    def _reshaped(self, token: tuple, key: str | None, capture: Callable) -> Program | None:
        """A program made with those for other sizes; None if there are none, or if torch.export has to do it."""
        if token not in self._captured:
            self._captured[token] = self._read(key) if key else []
            while len(self._captured) > _KEPT:
                self._captured.popitem(last=False)
        if not self._captured[token]:
            return None
        try:
            return capture([serialize.loads(zlib.decompress(data))[0] for data in self._captured[token]])
        except retrace.Differs as reason:
            self.differs = str(reason)
            return None

    def _keep(self, token: tuple, program: Program):
        if len(self._captured[token]) < _VARIANTS:
            # One that cannot be written is captured each time.
            with contextlib.suppress(serialize.Unwritable):
                self._captured[token].append(zlib.compress(serialize.dumps(program), 1))

    def _read(self, key: str) -> list[bytes]:
        data, found = self._cache.load(key) or b"", []
        while data:
            size = 8 + int.from_bytes(data[:8], "little")
            found.append(data[8:size])
            data = data[size:]
        try:
            for written in found:
                serialize.loads(zlib.decompress(written))
        except (serialize.Unreadable, zlib.error) as reason:
            self._cache.reject(key, str(reason))
            return []
        return found

    def _digest(self, module, call) -> str | None:
        """What the program depends on but for shapes and numbers; None without a cache, or where that cannot be told."""
        if self._cache is None:
            return None
        try:
            self.refusal = ""
            return fingerprint.fingerprint(module, call.spec)
        except fingerprint.Unknowable as reason:
            self.refusal = f"it holds {reason}"
        except RecursionError:
            self.refusal = "it is nested too deeply"
        return None

    def _load(self, key: str, structure: Structure, tensors: list) -> tuple | None:
        data = self._cache.load(key)
        if data is None:
            return None
        try:
            program, rewrites = serialize.loads(data)
            _check(program, structure, tensors)
        except serialize.Unreadable as reason:
            self._cache.reject(key, str(reason))
            return None
        return program, rewrites

    def _store(self, key: str, program: Program, rewrites: list):
        try:
            data = serialize.dumps(program, rewrites)
        except serialize.Unwritable as reason:
            self.refusal = f"it holds {reason}"
            return
        self._cache.store(key, data)


def _call(call: Flat, tensors: list, opened: bool) -> tuple[tuple, tuple]:
    """What a call gives to a key, and the same without sizes."""
    kinds = tuple((type(t).__qualname__, str(t.dtype), str(t.device), str(t.layout)) for t in tensors)
    numbers = () if opened else tuple((type(n).__name__, n.hex() if type(n) is float else n) for n in call.numbers)
    rest = (kinds, numbers, opened, str(torch.get_default_dtype()))
    return (tuple(tuple(t.shape) for t in tensors), *rest), (tuple(t.ndim for t in tensors), *rest)


def _check(program: Program, structure: Structure, tensors: list):
    """A stored program must fit the module and the call: its key says that it does, and this costs nothing."""
    placeholders = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    pairs = [(placeholders[name], structure.weights.get(qualified)) for name, qualified in program.weights.items()]
    pairs += [(placeholders[name], constant) for name, constant in program.constants.items()]
    if len(program.inputs) != len(tensors):
        raise serialize.Unreadable("it takes another number of tensors")
    pairs += [(placeholders[name], tensor) for name, tensor in zip(program.inputs, tensors)]
    for expected, given in pairs:
        if given is None or expected.shape != given.shape or expected.dtype != given.dtype:
            raise serialize.Unreadable("its tensors are not those of the module")
