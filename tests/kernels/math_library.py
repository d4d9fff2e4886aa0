"""The kernel library of csrc/math, built once a session for each instruction set, behind torch tensors.

Inputs end where a page begins that must not be touched, so that reading too far ends the process. Outputs are filled with
a sentinel and lie between two guard zones that must keep it.

`python -m tests.kernels.math_library` builds with the address and undefined-behaviour sanitizers and runs the tests on that.
"""

import ctypes
import functools
import mmap
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from diffusers_oneflow.kernels import loader

SOURCES = Path(__file__).parents[2] / "diffusers_oneflow" / "kernels" / "csrc" / "math"
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-ffp-contract=fast"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
VARIANTS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
NEEDED = {"avx2": {"avx2", "fma", "f16c"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
NEEDED["avx512bf16"] = NEEDED["avx512"] | {"avx512_bf16"}
NEEDED["amx"] = NEEDED["avx512bf16"] | {"amx_tile", "amx_bf16"}

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ACTS = ("none", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "sigmoid", "tanh")
CODES = (
    "add", "sub", "mul", "div", "max", "min",
    "add_scalar", "mul_scalar", "rsub_scalar", "rdiv_scalar", "max_scalar", "min_scalar", "pow_scalar", "act",
    "exp", "log", "sqrt", "rsqrt", "sin", "cos", "neg", "abs", "square", "erf",
)  # fmt: skip
GUARD, SENTINEL = 192, 0xA5
PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ_WRITE = 0, 3

i32, i64, f32, f64, ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_double, ctypes.c_void_p
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ptr, ctypes.c_size_t, ctypes.c_int]


class Instruction(ctypes.Structure):
    _fields_ = (("code", i32), ("a", i32), ("b", i32), ("value", f32))


class Operand(ctypes.Structure):
    _fields_ = (("data", ptr), ("type", i32), ("strides", i64 * 6))


class Chain(ctypes.Structure):
    _fields_ = (
        ("operands", ctypes.POINTER(Operand)), ("operand_count", i32),
        ("instructions", ctypes.POINTER(Instruction)), ("instruction_count", i32),
        ("ndim", i32), ("sizes", i64 * 6), ("y", ptr), ("y_type", i32),
    )  # fmt: skip


class Table(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.CFUNCTYPE(result, *arguments))
        for name, result, arguments in (
            ("group_norm", None, (i32, ptr, ptr, ptr, ptr, i64, i64, i64, i64, f64, i32, ctypes.c_bool)),
            ("layer_norm", None, (i32, ptr, ptr, ptr, ptr, i64, i64, f64)),
            ("rms_norm", None, (i32, ptr, ptr, ptr, i64, i64, f64)),
            ("softmax", None, (i32, ptr, ptr, i64, i64)),
            ("gated", None, (i32, ptr, ptr, i64, i64, i32, ctypes.c_bool)),
            ("copy", None, (i64, ptr, ptr, i32, ptr, ptr)),
            ("concat", None, (ptr, ptr, i32, i64, ptr)),
            ("upsample_nearest", None, (i64, ptr, ptr, i64, i64, i64, i64, i64)),
            ("embedding", ctypes.c_bool, (ptr, ptr, ptr, i64, i64, i64)),
            ("cast", None, (i32, i32, ptr, ptr, i64)),
            ("chain", None, (ctypes.POINTER(Chain),)),
        )
    )


def available() -> list[str]:
    flags = set(next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split())
    found = [name for name in VARIANTS if name == "avx2" or NEEDED[name] <= flags]
    return found if loader.instruction_set() == "amx" else [name for name in found if name != "amx"]


@functools.cache
def _built() -> tuple[tempfile.TemporaryDirectory, dict[str, Path]]:
    # Objects are compiled with -fopenmp and linked without: libgomp is the one that torch has loaded.
    folder = tempfile.TemporaryDirectory(prefix="dfo_math_")
    extra = SANITIZE if os.environ.get("DFO_MATH_SANITIZE") else []
    jobs = [(variant, source) for variant in available() for source in sorted(SOURCES.glob("*.cpp"))]

    def compile_one(job):
        variant, source = job
        made = Path(folder.name) / f"{variant}-{source.stem}.o"
        subprocess.run(["g++", *FLAGS, *VARIANTS[variant], *extra, "-c", source, "-o", made], check=True)
        return variant, made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    libraries = {}
    for variant in available():
        libraries[variant] = Path(folder.name) / f"{variant}.so"
        parts = [made for name, made in objects if name == variant]
        subprocess.run(["g++", "-shared", *extra, *parts, "-o", libraries[variant]], check=True)
    return folder, libraries


@functools.cache
def library(variant: str) -> "MathLibrary":
    return MathLibrary(_built()[1][variant])


class Input:
    """A copy of a tensor's dense values that ends at a page which cannot be read."""

    def __init__(self, tensor: torch.Tensor):
        size = tensor.numel() * tensor.element_size()
        pages = (size + PAGE - 1) // PAGE
        self._map = mmap.mmap(-1, (pages + 1) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        if libc.mprotect(start + pages * PAGE, PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
        self.address = start + pages * PAGE - size
        dense = tensor.contiguous()
        ctypes.memmove(self.address, dense.data_ptr(), size)


class Output:
    """Room for a dense tensor, `offset` items off a 64-byte boundary, between two guard zones."""

    def __init__(self, shape, dtype: torch.dtype, offset: int = 1):
        self.shape, self.dtype = tuple(shape), dtype
        self._bytes = torch.Size(self.shape).numel() * dtype.itemsize
        self._begin = GUARD + offset * dtype.itemsize
        self._buffer = torch.full((self._begin + self._bytes + GUARD,), SENTINEL, dtype=torch.uint8)
        self.address = self._buffer.data_ptr() + self._begin

    def untouched(self) -> bool:
        return bool((self._buffer == SENTINEL).all())

    def take(self) -> torch.Tensor:
        end = self._begin + self._bytes
        assert (self._buffer[: self._begin] == SENTINEL).all(), "written to before the output"
        assert (self._buffer[end:] == SENTINEL).all(), "written to behind the output"
        return self._buffer[self._begin : end].clone().view(self.dtype).view(self.shape)


def _address(value: "Input | None"):
    return None if value is None else value.address


def _numbers(values):
    return (i64 * max(len(values), 1))(*values)


class MathLibrary:
    """The table's functions on tensors; every one gives a new, dense tensor."""

    def __init__(self, path: Path):
        loaded = ctypes.CDLL(str(path))
        loaded.dfo_math.restype = ctypes.POINTER(Table)
        self.table = loaded.dfo_math().contents

    def group_norm(self, x, groups, weight=None, bias=None, eps=1e-5, act="none", channels_last=False):
        """x is (n, positions, channels) if channels_last, else (n, channels, positions)."""
        n, positions, channels = x.shape if channels_last else (x.shape[0], x.shape[2], x.shape[1])
        inputs = [None if t is None else Input(t) for t in (x, weight, bias)]
        y = Output(x.shape, x.dtype)
        self.table.group_norm(
            TYPES[x.dtype], *map(_address, inputs), y.address, n, positions, channels, groups, eps, ACTS.index(act), channels_last
        )
        return y.take()

    def layer_norm(self, x, weight=None, bias=None, eps=1e-5):
        inputs = [None if t is None else Input(t) for t in (x, weight, bias)]
        y = Output(x.shape, x.dtype)
        self.table.layer_norm(TYPES[x.dtype], *map(_address, inputs), y.address, *x.shape, eps)
        return y.take()

    def rms_norm(self, x, weight=None, eps=1e-5):
        inputs = [None if t is None else Input(t) for t in (x, weight)]
        y = Output(x.shape, x.dtype)
        self.table.rms_norm(TYPES[x.dtype], *map(_address, inputs), y.address, *x.shape, eps)
        return y.take()

    def softmax(self, x):
        given, y = Input(x), Output(x.shape, x.dtype)
        self.table.softmax(TYPES[x.dtype], given.address, y.address, *x.shape)
        return y.take()

    def gated(self, x, act, gate_first=False):
        given, y = Input(x), Output((x.shape[0], x.shape[1] // 2), x.dtype)
        self.table.gated(TYPES[x.dtype], given.address, y.address, *y.shape, ACTS.index(act), gate_first)
        return y.take()

    def copy(self, storage, sizes, strides, offset=0):
        """The view of a one-dimensional tensor that as_strided would give, negative strides too."""
        given, y = Input(storage), Output(sizes, storage.dtype)
        item = storage.element_size()
        self.table.copy(item, given.address + offset * item, y.address, len(sizes), _numbers(sizes), _numbers(strides))
        return y.take()

    def concat(self, parts):
        """Matrices of bytes side by side."""
        rows, widths = parts[0].shape[0], [p.shape[1] for p in parts]
        inputs, y = [Input(p) for p in parts], Output((rows, sum(widths)), torch.uint8)
        addresses = (ptr * len(parts))(*(p.address for p in inputs))
        self.table.concat(addresses, _numbers(widths), len(parts), rows, y.address)
        return y.take()

    def upsample_nearest(self, x, oh, ow):
        """x is (n, h, w, channels)."""
        n, h, w, channels = x.shape
        given, y = Input(x), Output((n, oh, ow, channels), x.dtype)
        self.table.upsample_nearest(channels * x.element_size(), given.address, y.address, n, h, w, oh, ow)
        return y.take()

    def embedding(self, table, ids):
        """None where an id is refused."""
        inputs, y = (Input(table), Input(ids)), Output((ids.numel(), table.shape[1]), table.dtype)
        row_bytes = table.shape[1] * table.element_size()
        found = self.table.embedding(inputs[0].address, inputs[1].address, y.address, ids.numel(), row_bytes, table.shape[0])
        made = y.take()
        return made if found else None

    def cast(self, x, dtype):
        given, y = Input(x), Output(x.shape, dtype)
        self.table.cast(TYPES[x.dtype], TYPES[dtype], given.address, y.address, x.numel())
        return y.take()

    def chain(self, operands, instructions, shape=None, dtype=torch.float32):
        """Operands are tensors of one ndim, or pairs (tensor, strides); instructions are (code, a, b, value)."""
        shape = torch.broadcast_shapes(*(t.shape for t in operands)) if shape is None else shape
        described, kept = (Operand * len(operands))(), []
        for at, tensor in zip(described, operands):
            view = tensor.expand(shape)
            reach = sum((s - 1) * stride for s, stride in zip(view.shape, view.stride())) + 1 if view.numel() else 0
            kept.append(Input(view.as_strided((reach,), (1,))))
            at.data, at.type = kept[-1].address, TYPES[tensor.dtype]
            at.strides[: len(shape)] = view.stride()
        program = (Instruction * len(instructions))()
        for at, (code, a, b, value) in zip(program, instructions):
            at.code, at.a, at.b, at.value = CODES.index(code), a, b, value
        y = Output(shape, dtype)
        chain = Chain(
            described, len(operands), program, len(instructions), len(shape), (i64 * 6)(*shape), y.address, TYPES[dtype]
        )
        self.table.chain(ctypes.byref(chain))
        return y.take()

    def apply(self, code, x, value=0.0):
        """One elementwise operation on one tensor."""
        return self.chain([x], [(code, 0, 0, value)], dtype=x.dtype)


def run_sanitized(arguments: list[str]) -> int:
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {
        **os.environ,
        "DFO_MATH_SANITIZE": "1",
        "LD_PRELOAD": os.path.realpath(asan),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch leave much behind
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    # Without pytest's capture, which would swallow the report: it ends the process.
    here = Path(__file__).parent
    tests = arguments or [str(path) for path in sorted(here.glob("test_math_*.py"))]
    return subprocess.run([sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *tests], env=environment).returncode


if __name__ == "__main__":
    sys.exit(run_sanitized(sys.argv[1:]))
