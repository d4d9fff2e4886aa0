"""Products by cuBLASLt, as torch has loaded it, through its C interface: a bias, GELU and a residual cost no kernel of their own.

Constants: cublasLt.h and library_types.h of CUDA 12 and 13, which agree.
"""

import ctypes
import functools
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import torch

from . import memory

_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
_COMPUTE_32F, _COMPUTE_TF32 = 68, 77
_TRANSA, _EPILOGUE, _BIAS_POINTER, _BIAS_TYPE = 3, 7, 8, 26
_EPILOGUES = {("none", False): 1, ("relu", False): 2, ("none", True): 4, ("relu", True): 6, ("gelu_tanh", False): 32,
              ("gelu_tanh", True): 36}  # fmt: skip
_WORKSPACE_BYTES, _REDUCTION_MASK = 1, 3
# Of a layout: how many matrices there are, and so many numbers from one to the next.
_BATCH_COUNT, _BATCH_STRIDE = 5, 6
# Of the matrices a, b, c and d; kernels that need more than there is are left out.
_ALIGNMENTS, _MOST_ALIGNED = (5, 6, 7, 8), 256
# Partial sums are added up in float32; in the result's own dtype each would be rounded.
_IN_FLOAT32 = 2
# Proposals that are asked for, and measured; CUDA 13 has eight for most shapes.
_MANY = 8


class _Result(ctypes.Structure):
    _fields_ = (("algorithm", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int), ("waves", c_float), ("rest", c_int * 4))


@functools.cache
def library() -> ctypes.CDLL:
    """The library that this build of torch is linked to. Raises OSError where there is none."""
    return ctypes.CDLL(f"libcublasLt.so.{str(torch.version.cuda).split('.')[0]}")


@functools.cache
def _handle(device: int) -> c_void_p:
    made = c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", byref(made))
    return made


def _call(name: str, *args: Any) -> None:
    if status := getattr(library(), name)(*args):
        raise RuntimeError(f"{name} returned status {status}")


def version() -> int:
    """Of the library; 0 where there is none."""
    try:
        library().cublasLtGetVersion.restype = c_size_t
        return int(library().cublasLtGetVersion())
    except OSError:
        return 0


def alignment(tensor: torch.Tensor) -> int:
    """The power of two, of those that make a difference, at a multiple of which the tensor's memory begins."""
    return min(tensor.data_ptr() & -tensor.data_ptr(), _MOST_ALIGNED)


def ends(act: str, residual: bool) -> bool:
    """Whether a product can end so in one kernel: ``act(x + bias)``, or ``x + bias + residual``."""
    return (act, True) in _EPILOGUES and not (residual and act != "none")


class Product:
    """``out = act(x @ weight.T + bias) [+ residual]`` for tensors of one shape.

    Args:
        x, weight, out: (n, rows, k), (columns, k), (n, rows, columns), of one dtype. The numbers of a row lie side by side; rows
            of `x` and `weight` may lie apart, `out` is dense.
        bias: (columns,) or None.
        residual: as `out`, or None.

    Attributes:
        algorithms: what the library proposes, its favourite first.

    Raises:
        RuntimeError: the library cannot compute it.
    """

    def __init__(
        self,
        out: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        act: str,
    ) -> None:
        (n, rows, k), columns, dtype = x.shape, weight.shape[0], x.dtype
        self._handle, self._device = _handle(x.device.index), x.device
        self._held: list[tuple[str, c_void_p]] = []
        fast = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        self._desc = self._create("cublasLtMatmulDescCreate", c_int(_COMPUTE_TF32 if fast else _COMPUTE_32F), c_int(0))
        self._set(_TRANSA, c_int(1))
        self._set(_EPILOGUE, c_int(_EPILOGUES[act, bias is not None]))
        if bias is not None:
            self._set(_BIAS_TYPE, c_int(_TYPES[bias.dtype]))
            self._set(_BIAS_POINTER, c_void_p(bias.data_ptr()))
        # The library counts by columns: to it the weight is (k, columns), and what is made (columns, rows).
        self._layouts = {
            "a": self._layout(dtype, (k, columns), weight.stride(0), n, 0),
            "b": self._layout(dtype, (k, rows), x.stride(1), n, x.stride(0)),
            "d": self._layout(dtype, (columns, rows), columns, n, rows * columns),
        }
        self._beta = c_float(0.0 if residual is None else 1.0)
        places = (weight, x, out if residual is None else residual, out)
        self.algorithms = self._propose(list(map(alignment, places)))

    def __call__(
        self, number: int, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None
    ) -> None:
        """Compute with one of `algorithms`, on the current stream; the bias is read where it was."""
        chosen = self.algorithms[number]
        a, b, d = self._layouts["a"], self._layouts["b"], self._layouts["d"]
        c = out if residual is None else residual
        workspace = memory.workspace(self._device)
        _call(
            "cublasLtMatmul", self._handle, self._desc, byref(c_float(1.0)), c_void_p(weight.data_ptr()), a,
            c_void_p(x.data_ptr()), b, byref(self._beta), c_void_p(c.data_ptr()), d, c_void_p(out.data_ptr()), d,
            byref(chosen.algorithm), c_void_p(workspace.data_ptr()), c_size_t(workspace.nbytes),
            c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip

    def _propose(self, alignments: list[int]) -> list[_Result]:
        preference = self._create("cublasLtMatmulPreferenceCreate")
        settings = [(_WORKSPACE_BYTES, c_uint64(memory.size())), (_REDUCTION_MASK, c_uint32(_IN_FLOAT32))]
        for attribute, setting in [*settings, *zip(_ALIGNMENTS, map(c_uint32, alignments))]:
            _call("cublasLtMatmulPreferenceSetAttribute", preference, c_int(attribute), byref(setting), c_size_t(_size(setting)))
        results, found = (_Result * _MANY)(), c_int()
        a, b, d = self._layouts["a"], self._layouts["b"], self._layouts["d"]
        _call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, self._desc, a, b, d, d, preference, c_int(_MANY), results,
            byref(found),
        )  # fmt: skip
        return [r for r in results[: found.value] if r.state == 0]

    def _layout(self, dtype: torch.dtype, size: tuple[int, int], step: int, n: int, jump: int) -> c_void_p:
        """Of `n` matrices: from column to column it is `step` numbers, and `jump` from matrix to matrix."""
        made = self._create("cublasLtMatrixLayoutCreate", c_int(_TYPES[dtype]), *map(c_uint64, size), c_int64(step))
        if n > 1:
            for attribute, value in ((_BATCH_COUNT, c_int(n)), (_BATCH_STRIDE, c_int64(jump))):
                _call("cublasLtMatrixLayoutSetAttribute", made, c_int(attribute), byref(value), c_size_t(_size(value)))
        return made

    def _create(self, function: str, *args: Any) -> c_void_p:
        made = c_void_p()
        _call(function, byref(made), *args)
        self._held.append((function.removesuffix("Create") + "Destroy", made))
        return made

    def _set(self, attribute: int, value: Any) -> None:
        _call("cublasLtMatmulDescSetAttribute", self._desc, c_int(attribute), byref(value), c_size_t(_size(value)))

    def __del__(self) -> None:
        for function, made in getattr(self, "_held", []):
            getattr(library(), function)(made)


def _size(value: Any) -> int:
    return ctypes.sizeof(value)
