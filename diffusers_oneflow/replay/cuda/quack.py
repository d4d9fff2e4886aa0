"""Products by the package quack-kernels, which flash-attn-4 brings: large ones, and such as gate in the same kernel.

On an H200 in float16 a product of 2048x1280x3840 takes 29.6 microseconds for 31.8 of cuBLASLt's fastest, one of 8192x320x960
10.5 for 13.1; those of 640 columns and 2048 rows take longer. Its kernels start while the one before them still runs, where that
lets them, and wait for its results by themselves; the ways of a product are measured without that.
"""

import functools
import importlib
import warnings
from typing import Any

import torch

from ...errors import Unsupported, first_line
from ...passes.base import HALVES
from . import cute_ahead, flash
from .strides import aligned

# Our names of activations, and those of quack's functions.
ACTS = {"gelu": "gelu_erf", "silu": "silu"}
# Tiles and clusters, the fastest two of eleven where it gates, at the sizes of Stable Diffusion and SDXL; the first is also the
# fastest of six where it does not. Each takes 2 seconds to compile, once.
CONFIGS = ({"tile_n": 160, "cluster_m": 2, "cluster_n": 1}, {"tile_n": 128, "cluster_m": 1, "cluster_n": 2})
# Columns and k, for 16 bytes at once.
STEP = 8
# Of `flash.LEAST`: multiplications and additions of a product that does not gate from which it may be faster.
_PART = 0.5
# Activations, or "none", with which it could not compile here: no layer is left to it any more.
failed: set[str] = set()


@functools.cache
def epilogue(act: str, bias: bool) -> Any:
    """What multiplies, and gates but for "none". Raises whatever importing it raises, and AttributeError for another version."""
    with cute_ahead.importing():
        flash.function()  # it imports parts of quack
        library = importlib.import_module("quack.epilogue.library")
        activation = importlib.import_module("quack.activation")
        ends = {"has_c": False, "has_rowvec": bias, "has_colvec": False}
        if act == "none":
            return library.linear_act_mod(None, gated=False, **ends)
        function = getattr(activation, ACTS[act])

        def gated(a: Any, b: Any) -> Any:
            return a * function(b)

        name = f"diffusers_oneflow_{ACTS[act]}"  # kernels are kept on disk by it
        activation.gate_fn_map[name] = gated
        return library.linear_act_mod(name, gated=True, **ends)


def usable(device: torch.device) -> bool:
    """Whether it was tried on GPUs like this one, and imports here; the first time that takes seconds."""
    if not flash.is_tried(device):
        return False
    try:
        return None not in (epilogue("gelu", True), epilogue("none", False))
    except Exception:  # not installed, of another version, or not with what it is built on
        return False


def able(act: str, device: torch.device) -> bool:
    """Whether it may compute products that end so, there: it is imported when it is needed, which takes seconds."""
    return act not in failed and cute_ahead.installed("quack-kernels") and flash.is_tried(device)


def suits(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether it computes ``x @ weight.T`` of matrices (rows, k) and (columns, k) here, and may gain by it."""
    half = x.dtype in HALVES and weight.dtype == x.dtype
    dense = aligned(out, x, weight) and x.is_contiguous() and weight.is_contiguous()
    large = 2.0 * x.numel() * len(weight) >= _PART * flash.LEAST
    even = x.shape[1] % STEP == len(weight) % STEP == 0
    return half and dense and large and even and able("none", x.device)


def multiply(
    number: int, act: str, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    """Fill `out` with ``x @ weight.T + bias``, or the first half of its columns times an activation of the second.

    Args:
        number: of `CONFIGS`.
        act: of `ACTS`, or "none".
        out: (rows, columns), or half as many; x (rows, k), weight (columns, k), all dense and of one half type.
        bias: (columns,) in float32, or None.

    Raises:
        cute_ahead.Deferred: another process compiles it.
        Exception: whatever its compiler raises. It is said once, as a warning, and remembered in `failed`.
    """
    if act in failed:
        raise Unsupported("a product by quack", "its package cannot compile it here")
    kind = ("quack", number, act, x.dtype, bias is None)
    cute_ahead.defer(kind, "quack.multiply", number, act, out, x, weight, bias)
    operands = {} if bias is None else {"mRowVecBroadcast": bias[None]}
    halves = {} if act == "none" else {"concat_layout": ("B", *operands)}
    try:
        run = epilogue(act, bias is not None)
        with cute_ahead.USING:
            config = importlib.import_module("quack.gemm_config").GemmConfig(
                tile_m=128, pingpong=True, is_dynamic_persistent=False, device_capacity=9, **CONFIGS[number]
            )
            run(x, weight.t(), None, out={"mAuxOut": out}, store_d=False, config=config, tuned=False, **halves, **operands)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if act not in failed:
            failed.add(act)
            said = f"quack-kernels cannot compute a gated layer here, two kernels do: {first_line(error)}"
            if act == "none":
                said = f"quack-kernels cannot compute a product here, cuBLASLt does: {first_line(error)}"
            warnings.warn(said, stacklevel=2)
        raise
