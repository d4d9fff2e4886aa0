"""Finds the program for a call: on disk, where an earlier process left it, or by capture and the passes.

What was captured is kept, a few kilobytes, and makes the capture for other sizes cheap (`retrace`), in other processes too.
"""

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

# Captured programs that are kept in memory for one module.
_KEPT = 8


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
        # Captured programs, not rewritten; None where other sizes give another program.
        self._captured: OrderedDict[tuple, bytes | None] = OrderedDict()

    def find(
        self, module, structure: Structure, call: Flat, tensors: list, opened: bool, native: bool, capture: Callable
    ) -> Found:
        """The program for a call.

        Args:
            tensors: of the call, its open numbers included; only shapes and dtypes matter.
            opened: whether the call's numbers are among the tensors, and not part of the program.
            native: whether it is for the kernel pack.
            capture: makes a new one, from a program for other sizes or None; whatever it raises is handed on.
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
            program, origin = capture(None), "captured"
            retrace.tidy(program)
            self._keep(token, program)
        captured = time.perf_counter()
        rewrites = passes.run(program, native)
        seconds = {"capture": captured - start, "passes": time.perf_counter() - captured}
        # Code that capture has loaded, or that has changed meanwhile, has no part in the key.
        if digest and digest == self._digest(module, call):
            self._store(key, program, rewrites)
            if origin == "captured" and self._captured[token]:
                self._cache.store(other, zlib.decompress(self._captured[token]))
        return Found(program, rewrites, origin, seconds)

    def _reshaped(self, token: tuple, key: str | None, capture: Callable) -> Program | None:
        """A program made from one for other sizes; None if there is none, or if torch.export has to do it."""
        if token not in self._captured and key and (data := self._cache.load(key)) is not None:
            self._remember(token, zlib.compress(data, 1))
        if not self._captured.get(token):
            return None
        try:
            known, _ = serialize.loads(zlib.decompress(self._captured[token]))
            return capture(known)
        except (retrace.Differs, serialize.Unreadable) as reason:
            self.differs = str(reason)
            self._captured[token] = None
            return None

    def _keep(self, token: tuple, program: Program):
        if token in self._captured:
            return
        try:
            self._remember(token, zlib.compress(serialize.dumps(program), 1))
        except serialize.Unwritable:
            self._remember(token, None)

    def _remember(self, token: tuple, data: bytes | None):
        self._captured[token] = data
        while len(self._captured) > _KEPT:
            self._captured.popitem(last=False)

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
