"""Linear layers whose second half gates the first, in one kernel, where the package quack-kernels is (flash-attn-4 brings it).

Elsewhere a product writes both halves and another kernel reads them. At 2048x1280x10240 in float16 on an H200 the product takes
78 microseconds and the gate some 20 more; quack's one kernel takes 76.
"""

import contextlib
import functools
import importlib
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F

from ...errors import first_line
from ...passes.base import HALVES
from ..lowering import Lowered
from ..values import Ref
from . import choice, cublaslt, flash, light

# Our names of activations, and those of quack's functions.
_ACTS = {"gelu": "gelu_erf", "silu": "silu"}
# Tiles and clusters, the fastest two of eleven at the sizes of Stable Diffusion and SDXL; each takes 2 seconds to compile, once.
_CONFIGS = ({"tile_n": 160, "cluster_m": 2, "cluster_n": 1}, {"tile_n": 128, "cluster_m": 1, "cluster_n": 2})
# Columns and k, for 16 bytes at once.
_STEP = 8
_Maybe = torch.Tensor | None
# Activations that it could not compile here: no layer is left to it any more.
_failed: set[str] = set()


@functools.cache
def _epilogue(act: str, bias: bool) -> Any:
    """What multiplies and gates; None where quack does not import."""
    try:
        activation = importlib.import_module("quack.activation")
        library = importlib.import_module("quack.epilogue.library")
        function = getattr(activation, _ACTS[act])

        def gated(a: Any, b: Any) -> Any:
            return a * function(b)

        name = f"diffusers_oneflow_{act}"
        activation.gate_fn_map[name] = gated
        return library.linear_act_mod(name, gated=True, has_c=False, has_rowvec=bias, has_colvec=False)
    except Exception:  # not installed, of another version, or not with what it is built on
        return None


def usable(device: torch.device) -> bool:
    """Whether it was tried on GPUs like this one, and imports here; the first time that takes seconds."""
    return flash.is_tried(device) and _epilogue("gelu", True) is not None


def product(lowered: Lowered, node: torch.fx.Node, x: Ref, weight: Ref, bias: Ref | None, gate: str) -> Ref | None:
    """A step for ``a * act(b)`` of the halves of ``x @ weight.T + bias``; None where there is no kernel, or nothing to gain."""
    columns, k = weight.shape
    half = x.dtype in HALVES and all(r is None or r.dtype == x.dtype for r in (weight, bias))
    dense = x.like.is_contiguous() and weight.like.is_contiguous()
    large = 2.0 * math.prod(x.shape) * columns >= flash.LEAST
    if gate not in _ACTS or not (half and dense and large) or k % _STEP or columns % (2 * _STEP):
        return None
    if gate in _failed or not flash.is_tried(lowered.device.torch) or _epilogue(gate, bias is not None) is None:
        return None
    # As it is it would be put in another order in every layer; this is done beside the rest.
    wide = None if bias is None else lowered.step(node, _widen, (bias,), bias.shape, torch.float32, "triton widen")
    made = (*x.shape[:-1], columns // 2)
    return lowered.step(node, Ways(gate), (x, weight, bias, wide), made, x.dtype, "quack")


def _widen(out: torch.Tensor, x: torch.Tensor) -> None:
    light.finish(out, x, None, None, "none", act_first=False)


class Ways(choice.Ways):
    """A product of one step that is gated, by an activation."""

    # Its compiler is not for several threads.
    prepared_here = True

    def __init__(self, act: str) -> None:
        super().__init__()
        self.kind = act

    def prepare(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        """Compile what will be measured."""
        for number in range(len(_CONFIGS)):
            with contextlib.suppress(Exception):  # it is left out when they are measured
                self._by_quack(number, out, x, weight, bias, wide)

    def __call__(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        """Fill `out` (..., columns / 2) from x (..., k), weight (columns, k), bias (columns,) and the same bias in float32."""
        key = ("gated product", tuple(x.shape), tuple(weight.shape), self.kind, str(x.dtype), bias is None)
        self._compute(key, (out, x, weight, bias, wide), x.device, spare=1)

    def _ways(self, *_: object) -> list[choice.Way]:
        ways = [(functools.partial(self._by_quack, number), "quack") for number in range(len(_CONFIGS))]
        return [*ways, (self._apart, "cublasLt, triton gated"), (self._in_torch, "cublas, triton gated")]

    def _by_quack(
        self, number: int, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe
    ) -> None:
        operands = {} if wide is None else {"mRowVecBroadcast": wide[None]}
        try:
            config = importlib.import_module("quack.gemm_config").GemmConfig(
                tile_m=128, pingpong=True, is_dynamic_persistent=False, device_capacity=9, **_CONFIGS[number]
            )
            _epilogue(self.kind, bias is not None)(
                x.view(-1, x.shape[-1]), weight.t(), None, out={"mAuxOut": out.view(-1, out.shape[-1])}, store_d=False,
                config=config, tuned=False, concat_layout=("B", *operands), **operands,
            )  # fmt: skip
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self.kind not in _failed:
                _failed.add(self.kind)
                said = f"quack-kernels cannot compute a gated layer here, two kernels do: {first_line(error)}"
                warnings.warn(said, stacklevel=2)
            raise

    def _apart(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        """With both halves in memory of torch's: where this is faster they are small."""
        x = x.view(1, -1, x.shape[-1])
        halves = x.new_empty(*x.shape[:2], len(weight))
        cublaslt.Product(halves, x, weight, bias, None, "none")(0, halves, x, weight, None)
        light.gate(out, halves, self.kind)

    def _in_torch(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: _Maybe, wide: _Maybe) -> None:
        light.gate(out, F.linear(x, weight, bias), self.kind)
