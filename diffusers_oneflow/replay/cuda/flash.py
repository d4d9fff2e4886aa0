"""Flash attention 4, which is faster than cuDNN's for long sequences; used where the package flash-attn-4 is installed."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ...errors import Unsupported, first_line
from ...passes.base import HALVES
from . import cute_ahead

# Multiplications and additions from which it may be worth the 1.5 to 2 seconds that it takes to compile, for each size of heads;
# where there is something as large, the smaller ones of that size, a prompt's keys say, may take it too.
LEAST = 1e10
_there: set[tuple[int, torch.dtype, bool]] = set()
_PACKAGE = "flash-attn-4"
# Generations of GPUs that it was tried on.
_TRIED = (9,)
# Sizes of heads: multiples of the one, up to the other.
_STEP, _WIDEST = 8, 256


@functools.cache
def function() -> Callable[..., Any] | None:
    """``flash_attn_func(q, k, v, softmax_scale=, causal=)`` of tensors (n, rows, heads, width); None where it does not import."""
    try:
        with cute_ahead.importing():
            found: Callable[..., Any] = importlib.import_module("flash_attn.cute").flash_attn_func
    except Exception as error:  # not installed, or not with what it is built on
        if cute_ahead.installed(_PACKAGE):
            warnings.warn(f"flash-attn-4 is installed and cannot be used, other kernels are: {first_line(error)}", stacklevel=2)
        return None
    return found


def is_tried(device: torch.device) -> bool:
    """Whether kernels of this family were tried on GPUs like this one."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in _TRIED


def able(device: torch.device) -> bool:
    """Whether it was tried on GPUs like this one, and is installed: it takes seconds to import, and is when it is needed."""
    return cute_ahead.installed(_PACKAGE) and is_tried(device)


def usable(device: torch.device) -> bool:
    """Whether it was tried on GPUs like this one, and imports here; the first time that takes seconds."""
    return is_tried(device) and function() is not None


def fits(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> bool:
    """Whether it computes this and may gain by it; what is large is remembered for smaller ones of its kind.

    Args:
        q, k: (n, heads, rows, width) and (n, heads, keys, width).
    """
    if mask is not None or q.dtype not in HALVES or (causal and q.shape[-2] != k.shape[-2]):
        return False
    width = q.shape[-1]
    kind = width, q.dtype, causal
    large = 4.0 * q.numel() * k.shape[-2] >= LEAST or kind in _there
    if not (large and width % _STEP == 0 and width <= _WIDEST and able(q.device)):
        return False
    _there.add(kind)
    return True


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float | None) -> torch.Tensor:
    """(n, rows, heads, width) from q, k, v of (n, rows or keys, heads, width), which it `fits`.

    Raises:
        Unsupported: the package does not import.
        cute_ahead.Deferred: another process compiles it.
    """
    cute_ahead.defer(("flash", q.shape[-1], q.dtype, causal), "flash.attention", q, k, v, causal, scale)
    flash = function()
    if flash is None:
        raise Unsupported("flash attention 4", "its package does not import")
    with cute_ahead.USING, warnings.catch_warnings():  # its compiler has much to say
        warnings.simplefilter("ignore")
        made = flash(q, k, v, softmax_scale=scale, causal=causal)
    result: torch.Tensor = made[0] if isinstance(made, tuple) else made
    return result
