"""Finds the program for a call: on disk, where an earlier process left it, or else by capture and the passes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import fingerprint, passes, serialize
from .cache import Cache, directory, key_of
from .capture import Program
from .signature import Flat
from .structure import Structure


@dataclass
class Found:
    """A rewritten program and how it came to be.

    Attributes:
        rewrites: what the passes did.
        origin: "captured" or "disk cache".
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
    """

    def __init__(self, cache):
        folder = directory(cache)
        self._cache = Cache(folder) if folder is not None else None
        self.refusal = ""

    def find(
        self, module, structure: Structure, call: Flat, tensors: list, opened: bool, native: bool, capture: Callable
    ) -> Found:
        """The program for a call.

        Args:
            tensors: of the call, its open numbers included; only shapes and dtypes matter.
            opened: whether the call's numbers are among the tensors, and not part of the program.
            native: whether it is for the kernel pack.
            capture: makes a new one; whatever it raises is handed on.
        """
        start = time.perf_counter()
        digest = self._digest(module, call)
        key = key_of(digest, *_call(call, tensors, opened), native) if digest else None
        stored = self._load(key, structure, tensors) if digest else None
        if stored is not None:
            return Found(*stored, "disk cache", {"capture": time.perf_counter() - start, "passes": 0.0})
        program = capture()
        captured = time.perf_counter()
        rewrites = passes.run(program, native)
        seconds = {"capture": captured - start, "passes": time.perf_counter() - captured}
        # Code that capture has loaded, or that has changed meanwhile, has no part in the key.
        if digest and digest == self._digest(module, call):
            self._store(key, program, rewrites)
        return Found(program, rewrites, "captured", seconds)

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


def _call(call: Flat, tensors: list, opened: bool) -> tuple:
    given = [(type(t).__qualname__, tuple(t.shape), str(t.dtype), str(t.device), str(t.layout)) for t in tensors]
    numbers = [] if opened else [(type(n).__name__, n.hex() if type(n) is float else n) for n in call.numbers]
    return given, numbers, opened, str(torch.get_default_dtype())


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
