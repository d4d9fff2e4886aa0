"""Convolutions by cuDNN, as torch has loaded it, through its graph interface: a bias and a residual cost no kernel of their own.

Constants: cudnn_graph.h of cuDNN 9.
"""

import ctypes
import functools
import threading
from collections.abc import Sequence
from ctypes import byref, c_bool, c_float, c_int, c_int64, c_void_p
from typing import Any

import torch

from . import memory

_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 9}
# Kinds of descriptors, ...
_POINTWISE, _CONVOLUTION, _ENGINE, _CONFIG, _HEURISTIC, _PLAN = 0, 1, 2, 3, 4, 5
_FORWARD, _BACKWARD_DATA, _ADD, _GRAPH, _PACK, _TENSOR = 10, 12, 13, 15, 16, 17
# ... and of what they are told.
_HANDLE, _DATA_TYPE, _BOOL, _INT64, _FLOAT, _POINTER, _MODE, _HEUR_MODE, _NOTE, _PW_MODE, _DESC = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    11,
    14,
    15,
)
_CROSS_CORRELATION, _PLUS, _HEURISTIC_A = 1, 0, 3
# Sums that are rounded on the way, results that differ from run to run, and Winograd's, whose error is several times as large.
_UNWANTED_NOTES = {2, 4, 5, 6, 7, 8}


@functools.cache
def library() -> ctypes.CDLL:
    """The library that torch is linked to. Raises OSError where there is none."""
    return ctypes.CDLL(f"libcudnn.so.{torch.backends.cudnn.version() // 10000}")


class Handle:
    """cuDNN for whoever takes its lock, since no two threads may use it at once. It holds 8 MB of the GPU."""

    def __init__(self, device: int) -> None:
        self.pointer, self.lock = c_void_p(), threading.RLock()
        with torch.cuda.device(device):
            _call("cudnnCreate", byref(self.pointer))

    def __del__(self) -> None:
        if self.pointer:
            library().cudnnDestroy(self.pointer)


_local = threading.local()


@functools.cache
def handle(device: int) -> Handle:
    """The one that graphs use."""
    return Handle(device)


def own_handle(device: int) -> Handle:
    """One of the calling thread, to compile with: it goes when the thread ends, and what cuDNN has compiled stays."""
    handles: dict[int, Handle] = _local.__dict__.setdefault("handles", {})
    if device not in handles:
        handles[device] = Handle(device)
    return handles[device]


def _call(name: str, *args: Any) -> None:
    if status := getattr(library(), name)(*args):
        raise RuntimeError(f"{name} returned status {status}")


class _Descriptor:
    """One of cuDNN's opaque things; keeps alive what it was told of."""

    def __init__(self, kind: int, *settings: tuple[int, int, Any]) -> None:
        self.pointer = c_void_p()
        _call("cudnnBackendCreateDescriptor", c_int(kind), byref(self.pointer))
        self._told = settings
        for attribute, of, values in settings:
            self._set(attribute, of, values if isinstance(values, (list, tuple)) else [values])

    def _set(self, attribute: int, of: int, values: Sequence[Any]) -> None:
        kind: Any = {_BOOL: c_bool, _INT64: c_int64, _FLOAT: c_float}.get(of, c_int)
        if of in (_DESC, _HANDLE, _POINTER):
            kind, values = c_void_p, [v.pointer if isinstance(v, _Descriptor) else v for v in values]
        array = (kind * len(values))(*values)
        _call("cudnnBackendSetAttribute", self.pointer, c_int(attribute), c_int(of), c_int64(len(values)), array)

    def finish(self) -> "_Descriptor":
        _call("cudnnBackendFinalize", self.pointer)
        return self

    def get(self, attribute: int, of: int, array: Any) -> int:
        """Fill `array`; how many there are."""
        count = c_int64()
        # Asked for none, it says how many there are, but only without an array.
        told = array if len(array) else None
        _call("cudnnBackendGetAttribute", self.pointer, c_int(attribute), c_int(of), c_int64(len(array)), byref(count), told)
        return count.value

    def __del__(self) -> None:
        if self.pointer:
            library().cudnnBackendDestroyDescriptor(self.pointer)


def _tensor(number: int, dims: Sequence[int], dtype: torch.dtype, virtual: bool = False) -> _Descriptor:
    """Of dimensions (n, c, h, w), channels last."""
    n, c, h, w = dims
    return _Descriptor(
        _TENSOR, (901, _DATA_TYPE, _TYPES[dtype]), (902, _INT64, [n, c, h, w]), (903, _INT64, [c * h * w, 1, c * w, c]),
        (906, _INT64, number), (900, _INT64, 16), (907, _BOOL, virtual),
    ).finish()  # fmt: skip


class Convolution:
    """``out = conv(x, weight) [+ bias] [+ residual]`` for tensors of one shape, float16 or bfloat16, summed in float32.

    Args:
        by: what plans and computes; it has to live as long.
        x, weight, out: shapes (n, c, h, w), (oc, c / groups, kh, kw), (n, oc, oh, ow), all channels last in memory.
        transposed: instead of `x`, what a convolution with weights (c, oc, kh, kw) made of an image like `out` has that shape;
            its gradient, with respect to the image, is computed.

    Attributes:
        configs: ways to compute it that the library proposes, its favourite first.

    Raises:
        RuntimeError: the library cannot compute it.
    """

    def __init__(
        self, by: Handle, x: Sequence[int], weight: Sequence[int], out: Sequence[int], dtype: torch.dtype, device: torch.device,
        bias: bool, residual: bool, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
        transposed: bool = False,
    ) -> None:  # fmt: skip
        self._device, self._cudnn = device, by
        dims = (106, _INT64, 2)
        sizes = ((103, _INT64, [*stride]), (104, _INT64, [*padding]), (105, _INT64, [*padding]), (102, _INT64, [*dilation]))
        how = _Descriptor(_CONVOLUTION, (100, _DATA_TYPE, 0), (101, _MODE, _CROSS_CORRELATION), dims, *sizes).finish()
        adds = [(3, (1, out[1], 1, 1))] * bias + [(4, out)] * residual
        made = _tensor(2 if not adds else 10, out, dtype if not adds else torch.float32, bool(adds))
        image, filters = _tensor(0, x, dtype), _tensor(1, weight, dtype)
        # Conv, X, W, Y, alpha and beta; for the gradient conv, DY, W, DX, alpha and beta.
        kind, numbers = (
            (_BACKWARD_DATA, (708, 711, 709, 710, 706, 707)) if transposed else (_FORWARD, (702, 704, 703, 705, 700, 701))
        )
        values = ((_DESC, how), (_DESC, image), (_DESC, filters), (_DESC, made), (_FLOAT, 1.0), (_FLOAT, 0.0))
        ops = [_Descriptor(kind, *((number, *value) for number, value in zip(numbers, values))).finish()]
        plus = _Descriptor(_POINTWISE, (0, _PW_MODE, _PLUS), (1, _DATA_TYPE, 0)).finish()
        for position, (number, shape) in enumerate(adds):
            last = position == len(adds) - 1
            result = _tensor(2 if last else 11, out, dtype if last else torch.float32, not last)
            other = _tensor(number, shape, dtype)
            ops.append(
                _Descriptor(_ADD, (750, _DESC, plus), (751, _DESC, made), (752, _DESC, other), (753, _DESC, result)).finish()
            )
            made = result
        self._numbers = [0, 1, 2, *(number for number, _ in adds)]
        self._graph = _Descriptor(_GRAPH, (801, _DESC, ops), (800, _HANDLE, self._cudnn.pointer)).finish()
        self.configs = self._propose()
        self._plans: dict[int, tuple[_Descriptor, int]] = {}

    def __call__(self, number: int, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *more: torch.Tensor) -> None:
        """Compute with one of `configs`, on the current stream; `more` are the bias and the residual that there are."""
        plan, size = self.plan(number)
        if size > memory.size():
            raise RuntimeError(f"it takes {size} bytes of scratch memory")
        pointers = [t.data_ptr() for t in (x, weight, out, *more)]
        scratch = memory.workspace(self._device).data_ptr()
        pack = _Descriptor(
            _PACK, (1000, _INT64, self._numbers), (1001, _POINTER, pointers), (1003, _POINTER, scratch)
        ).finish()  # fmt: skip
        with self._cudnn.lock:
            _call("cudnnSetStream", self._cudnn.pointer, c_void_p(torch.cuda.current_stream().cuda_stream))
            _call("cudnnBackendExecute", self._cudnn.pointer, plan.pointer, pack.pointer)

    def plan(self, number: int) -> tuple[_Descriptor, int]:
        """What computes so, and the bytes of scratch memory that it takes; some are compiled, which takes a second."""
        with self._cudnn.lock:
            return self._planned(number)

    def _planned(self, number: int) -> tuple[_Descriptor, int]:
        if number not in self._plans:
            plan = _Descriptor(_PLAN, (400, _HANDLE, self._cudnn.pointer), (401, _DESC, self.configs[number])).finish()
            size = (c_int64 * 1)()
            plan.get(402, _INT64, size)
            self._plans[number] = plan, size[0]
        return self._plans[number]

    def _propose(self) -> list[_Descriptor]:
        heuristic = _Descriptor(_HEURISTIC, (201, _DESC, self._graph), (200, _HEUR_MODE, _HEURISTIC_A)).finish()
        count = heuristic.get(202, _DESC, (c_void_p * 0)())
        found = [_Descriptor(_CONFIG) for _ in range(count)]
        array = (c_void_p * count)(*(d.pointer for d in found))
        count = heuristic.get(202, _DESC, array)
        return [config for config in found[:count] if not _UNWANTED_NOTES & _notes(config)]


def _notes(config: _Descriptor) -> set[int]:
    engine = _Descriptor(_ENGINE)
    config.get(300, _DESC, (c_void_p * 1)(engine.pointer))
    notes = (c_int * 10)()
    return set(notes[: engine.get(1303, _NOTE, notes)])
