"""Lowerings to the pack's kernels: what they cannot take goes to OneFlow's own (`Refused`).

Tensors come in as OneFlow tensors. The kernels take the floating-point dtypes of `TYPES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import oneflow as flow
import torch

from ..interop import Weight, flow_tensor
from ..lowering.registry import Refused
from ..lowering.types import torch_dtype
from . import loader
from .node import ACTIVATIONS, TYPES, broadcast_strides, node
from .weights import filter_sizes

# From so many rows and keys on the pack's own attention is the faster one: splitting keys has to pay.
_ROWS, _KEYS = 32, 128

F = TypeVar("F", bound=Callable[..., Any])
_TABLE: dict[str, Callable[..., Any]] = {}
_TAKES_WEIGHTS: set[str] = set()


def native(*ops: str, weights: bool = False) -> Callable[[F], F]:
    """Register a function as the pack's lowering of `ops`, next to OneFlow's own.

    Args:
        weights: parameters of the module come as `interop.Weight`, not as OneFlow tensors.

    Raises:
        ValueError: the op has one already.
    """

    def register(function: F) -> F:
        for op in ops:
            if op in _TABLE:
                raise ValueError(f"{op} has two kernels in the pack: in {_TABLE[op].__name__} and {function.__name__}")
            _TABLE[op] = function
            if weights:
                _TAKES_WEIGHTS.add(op)
        return function

    return register


def find(op: str) -> tuple[Callable[..., Any] | None, bool]:
    """The pack's lowering of `op`, or None, and whether it takes weights."""
    return _TABLE.get(op), op in _TAKES_WEIGHTS


def _dtype(x: Any) -> torch.dtype:
    dtype = x.dtype if isinstance(x, Weight) else torch_dtype(x)
    if dtype not in TYPES:
        raise Refused(f"{dtype}")
    return dtype


def _same_dtype(*tensors: Any) -> torch.dtype:
    dtypes = {_dtype(t) for t in tensors if t is not None}
    if len(dtypes) > 1:
        raise Refused("operands of several dtypes")
    return dtypes.pop()


def _is_wider(dtype: torch.dtype, *weights: Any) -> bool:
    """Whether the weights of a norm are all float32, and its input is not: torch computes and rounds once, at the end."""
    return dtype != torch.float32 and {_dtype(w) for w in weights if w is not None} == {torch.float32}


def convert(x: flow.Tensor, dtype: torch.dtype) -> flow.Tensor:
    """`x` in another of the floating-point types."""
    own = torch_dtype(x)
    if own == dtype:
        return x
    if own not in TYPES or dtype not in TYPES:
        raise Refused(f"{own} to {dtype}")
    return node("dfo_cast", [x], x.shape, dtype, TYPES[own], TYPES[dtype], math.prod(x.shape))


def _weight(w: Any) -> Any:
    if not isinstance(w, Weight) or w.store is None:
        raise Refused("a weight that is computed")
    return w


def _plain(w: Any) -> int:
    """The slot of a weight as torch has it, or cast; -1 for none."""
    slot: int = -1 if w is None else _weight(w).store.plain(w.tensor, w.dtype)
    return slot


def _product(
    kind: str,
    x: flow.Tensor,
    weight: Any,
    bias: Any,
    residual: flow.Tensor | None,
    shape: Sequence[int],
    image: tuple[int, int, int, int, int],
    geometry: tuple[int, ...],
    act: str,
    act_first: bool,
    gate: str,
) -> flow.Tensor:
    """A node of this package's own float32 kernels: `image` is (batch, h, w, oh, ow), `geometry` the rest of a convolution."""
    sizes, strides = filter_sizes(weight.tensor)
    store, (batch, _, _, oh, ow) = weight.store, image
    packed = store.filter(weight.tensor, batch * oh * ow)
    slots = _plain(weight), packed, _plain(bias)
    return node(
        kind, [x] if residual is None else [x, residual], shape, torch.float32, *image, *geometry, *sizes, *strides, *slots,
        ACTIVATIONS[act], act_first, ACTIVATIONS[gate], residual is not None,
    )  # fmt: skip


@native("oneflow.conv2d.default", weights=True)
def conv2d(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str = "none",
    residual: Any = None,
) -> flow.Tensor:
    x, residual = flow_tensor(x), flow_tensor(residual)
    dtype = _same_dtype(x, weight, bias, residual)
    w = _weight(weight)
    n, h, width, c = x.shape
    oc, *_, kh, kw = w.shape
    oh, ow = (
        (size + 2 * padding[i] - dilation[i] * (k - 1) - 1) // stride[i] + 1 for i, (size, k) in enumerate(((h, kh), (width, kw)))
    )
    shape = (n, oh, ow, oc)
    if dtype == torch.float32 and groups == 1:
        geometry = (*stride, *padding, *dilation)
        return _product("dfo_convolution", x, w, bias, residual, shape, (n, h, width, oh, ow), geometry, act, False, "none")
    slot = w.store.convolution(w.tensor, w.dtype, stride, padding, dilation, groups, [n, c, h, width])
    return node(
        "dfo_onednn_convolution", [x] if residual is None else [x, residual], shape, dtype, n, h, width, c, oc, oh, ow, stride,
        padding, dilation, groups, slot, _plain(bias), ACTIVATIONS[act], TYPES[dtype], residual is not None,
    )  # fmt: skip


@native("oneflow.linear.default", weights=True)
def linear(x: Any, weight: Any, bias: Any = None, act: str = "none", residual: Any = None, gate: str = "none") -> flow.Tensor:
    x, residual = flow_tensor(x), flow_tensor(residual)
    dtype = _same_dtype(x, weight, bias, residual)
    if residual is not None and gate != "none":
        raise Refused("a residual after what the kernel applies last")
    w = _weight(weight)
    out, k = w.shape
    rows = math.prod(x.shape[:-1])
    if gate != "none" and (dtype != torch.float32 or out % 64):
        return gated(linear(x, weight, bias, act), gate)
    shape = (*x.shape[:-1], out if gate == "none" else out // 2)
    if dtype == torch.float32:
        geometry = (1, 1, 0, 0, 1, 1)
        return _product("dfo_linear", x, w, bias, residual, shape, (1, 1, rows, 1, rows), geometry, act, True, gate)
    if residual is not None and act == "quick_gelu":
        raise Refused("an activation that oneDNN does not have, before an addition")
    slot = w.store.linear(w.tensor, w.dtype, rows)
    return node(
        "dfo_onednn_linear", [x] if residual is None else [x, residual], shape, dtype, rows, k, out, slot, _plain(bias),
        ACTIVATIONS[act], TYPES[dtype], residual is not None,
    )  # fmt: skip


@native("aten.linear.default", weights=True)
def plain_linear(input: flow.Tensor, weight: Any, bias: Any = None) -> flow.Tensor:
    return linear(input, weight, bias)


@native("oneflow.gated.default")
def gated(x: Any, act: str, gate_first: bool = False) -> flow.Tensor:
    dtype = _dtype(x)
    columns = x.shape[-1] // 2
    rows = math.prod(x.shape[:-1])
    shape = (*x.shape[:-1], columns)
    return node("dfo_gated", [x], shape, dtype, rows, columns, ACTIVATIONS[act], gate_first, TYPES[dtype])


@native("oneflow.attention.default")
def attention(
    q: flow.Tensor, k: flow.Tensor, v: flow.Tensor, mask: flow.Tensor | None, heads: int, causal: bool, scale: float | None
) -> flow.Tensor:
    dtype = _same_dtype(q, k, v)
    b, m, width = q.shape
    n = k.shape[1]
    d = width // heads
    scale = 1 / math.sqrt(d) if scale is None else float(scale)
    inputs = [q, k, v]
    sizes: Sequence[int] = ()
    strides: Sequence[int] = ()
    if mask is not None:
        if _dtype(mask) != dtype:
            raise Refused("a mask of another dtype")
        inputs.append(mask)
        sizes = (b, heads, m, n)
        strides = broadcast_strides(mask.shape, sizes)
    own = dtype == torch.float32 and m >= _ROWS and n >= _KEYS and loader.pack().has_attention()
    q_strides, k_strides = [m * width, width, d], [n * width, width, d]
    return node(
        "dfo_attention" if own else "dfo_flash_attention", inputs, (b, m, width), dtype, b, m, n, heads, d, q_strides, k_strides,
        k_strides, causal, scale, TYPES[dtype], sizes, strides,
    )  # fmt: skip


@native("oneflow.group_norm.default")
def group_norm(
    x: Any,
    groups: int,
    weight: flow.Tensor | None,
    bias: flow.Tensor | None,
    eps: float,
    act: str = "none",
    channels_last: bool = True,
) -> flow.Tensor:
    dtype = _dtype(x)
    if _is_wider(dtype, weight, bias):
        wide = group_norm(convert(flow_tensor(x), torch.float32), groups, weight, bias, eps, act, channels_last)
        return convert(wide, dtype)
    channels = x.shape[-1 if channels_last else 1]
    inputs = [x]
    if weight is not None:
        if bias is None or _same_dtype(x, weight, bias) != dtype:
            raise Refused("a weight without a bias")
        inputs += [weight, bias]
    elif bias is not None:
        raise Refused("a bias without a weight")
    n = x.shape[0]
    positions = math.prod(x.shape) // (n * channels)
    return node(
        "dfo_group_norm", inputs, x.shape, dtype, n, positions, channels, groups, float(eps), ACTIVATIONS[act], channels_last,
        TYPES[dtype],
    )  # fmt: skip


@native("aten.group_norm.default")
def plain_group_norm(
    input: flow.Tensor,
    num_groups: int,
    weight: flow.Tensor | None = None,
    bias: flow.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: object = True,
) -> flow.Tensor:
    return group_norm(input, num_groups, weight, bias, eps, channels_last=False)


@native("aten.layer_norm.default")
def layer_norm(
    input: flow.Tensor,
    normalized_shape: Sequence[int],
    weight: flow.Tensor | None = None,
    bias: flow.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: object = True,
) -> flow.Tensor:
    if _is_wider(dtype := _dtype(input), weight, bias):
        return convert(layer_norm(convert(input, torch.float32), normalized_shape, weight, bias, eps), dtype)
    dtype = _same_dtype(input, weight, bias)
    if weight is None and bias is not None:
        raise Refused("a bias without a weight")
    inputs = [input, *(t for t in (weight, bias) if t is not None)]
    columns = math.prod(normalized_shape)
    rows = math.prod(input.shape) // columns
    return node("dfo_layer_norm", inputs, input.shape, dtype, rows, columns, float(eps), TYPES[dtype])


@native("aten.rms_norm.default")
def rms_norm(
    input: flow.Tensor, normalized_shape: Sequence[int], weight: flow.Tensor | None = None, eps: float | None = None
) -> flow.Tensor:
    dtype = _same_dtype(input, weight)
    eps = torch.finfo(dtype).eps if eps is None else eps
    inputs = [input] if weight is None else [input, weight]
    columns = math.prod(normalized_shape)
    rows = math.prod(input.shape) // columns
    return node("dfo_rms_norm", inputs, input.shape, dtype, rows, columns, float(eps), TYPES[dtype])


@native("aten.softmax.int", "aten._softmax.default")
def softmax(self: flow.Tensor, dim: int, dtype: torch.dtype | bool | None = None) -> flow.Tensor:
    own = _dtype(self)
    if (dtype not in (None, False, own)) or self.ndim == 0 or dim % self.ndim != self.ndim - 1:
        raise Refused("softmax over another dimension than the last")
    return node("dfo_softmax", [self], self.shape, own, math.prod(self.shape[:-1]), self.shape[-1], TYPES[own])


@native("oneflow.upsample_nearest2d.default")
def upsample_nearest2d(x: Any, size: Sequence[int]) -> flow.Tensor:
    n, h, w, c = x.shape
    dtype = torch_dtype(x)
    return node("dfo_upsample", [x], (n, *size, c), dtype, c * dtype.itemsize, n, h, w, *size)


@native("aten.embedding.default")
def embedding(
    weight: flow.Tensor,
    indices: flow.Tensor,
    padding_idx: object = -1,
    scale_grad_by_freq: object = False,
    sparse: object = False,
) -> flow.Tensor:
    dtype = torch_dtype(weight)
    if torch_dtype(indices) != torch.int64:
        raise Refused("indices that are not int64")
    count = math.prod(indices.shape)
    rows, columns = weight.shape
    return node("dfo_embedding", [weight, indices], (*indices.shape, columns), dtype, count, columns * dtype.itemsize, rows)
