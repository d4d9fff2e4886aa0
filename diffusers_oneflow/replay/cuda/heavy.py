"""Lowerings on CUDA of convolution, linear layers and attention: cuDNN, cuBLASLt and flash attention as torch loads them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..lowering import Lowered
from ..values import Ref
from . import choice
from .light import finish, fits, gate
from .table import on_cuda


@on_cuda("oneflow.conv2d.default")
def conv2d(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    weight: Ref,
    bias: Ref | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    act: str = "none",
    residual: Ref | None = None,
) -> Any:
    made = node.meta["val"]
    filters = isinstance(weight.source, torch.Tensor) and len(weight.shape) == 4
    if not filters or not fits(x, weight, bias, residual) or x.dtype != weight.dtype:
        return lowered.in_torch(node, (x, weight, bias, stride, padding, dilation, groups, act, residual), {})
    x = lowered.contiguous(node, x)
    residual = None if residual is None else lowered.contiguous(node, residual)
    oc, c, kh, kw = weight.shape
    if (kh, kw, groups) == (1, 1, 1) and not any(padding) and set(stride) == {1}:
        flat = weight.through(lambda w: w.view(oc, c))
        return _product(lowered, node, x, flat, bias, act, residual, "none", act_first=False)
    tail = bias is not None or residual is not None or act != "none"

    def run(
        out: torch.Tensor, x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> None:
        image, made = x.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2)
        # The parameter itself where it lies so (`layout`), else a copy in every call: one made once would miss writes.
        filters = filters.contiguous(memory_format=torch.channels_last)
        torch.ops.aten.cudnn_convolution.out(
            image, filters, padding, stride, dilation, groups, True, False, torch.backends.cudnn.allow_tf32, out=made
        )
        if tail:
            finish(out, out, bias, residual, act, False)

    kernel = "cudnn convolution + triton" if tail else "cudnn convolution"
    return lowered.step(node, run, (x, weight, bias, residual), made.shape, made.dtype, kernel)


@on_cuda("oneflow.linear.default")
def linear(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    weight: Ref,
    bias: Ref | None = None,
    act: str = "none",
    residual: Ref | None = None,
    gate: str = "none",
) -> Any:
    if not fits(x, weight, bias, residual) or x.dtype != weight.dtype:
        return lowered.in_torch(node, (x, weight, bias, act, residual, gate), {})
    return _product(lowered, node, x, weight, bias, act, residual, gate, act_first=True)


@on_cuda("aten.linear.default")
def plain_linear(lowered: Lowered, node: torch.fx.Node, x: Ref, weight: Ref, bias: Ref | None = None) -> Any:
    if not fits(x, weight, bias) or x.dtype != weight.dtype:
        return lowered.in_torch(node, (x, weight, bias), {})
    return _product(lowered, node, x, weight, bias, "none", None, "none", act_first=True)


def _product(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    weight: Ref,
    bias: Ref | None,
    act: str,
    residual: Ref | None,
    gate_act: str,
    act_first: bool,
) -> Ref:
    made = node.meta["val"]
    x = lowered.contiguous(node, x)
    residual = None if residual is None else lowered.contiguous(node, residual)
    k = x.shape[-1]
    rows, columns = math.prod(x.shape[:-1]), weight.shape[0]
    plain = act == "none" and residual is None and gate_act == "none"

    def run(
        out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> None:
        x = x.view(rows, k)
        if gate_act != "none":
            wide = torch.mm(x, weight.t())
            if act != "none" or residual is not None:
                finish(wide, wide, bias, residual, act, True)
                bias = None
            gate(out, wide, bias, gate_act, False)
            return
        flat = out.view(rows, columns)
        if plain and bias is not None:
            torch.addmm(bias, x, weight.t(), out=flat)
            return
        torch.mm(x, weight.t(), out=flat)
        if not plain:
            finish(flat, flat, bias, residual, act, act_first)

    kernel = "cublas" if plain else "cublas + triton"
    return lowered.step(node, run, (x, weight, bias, residual), made.shape, made.dtype, kernel)


_ATTENTION = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


@on_cuda("oneflow.attention.default")
def attention(
    lowered: Lowered, node: torch.fx.Node, q: Ref, k: Ref, v: Ref, mask: Ref | None, heads: int, causal: bool, scale: float | None
) -> Any:
    made = node.meta["val"]
    chosen: list[SDPBackend] = []
    shapes = tuple((tuple(t.shape), t.like.stride()) for t in (q, k, v, mask) if t is not None)
    key = ("attention", lowered.device.torch, shapes, q.dtype, heads, causal, scale)

    def compute(
        backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)

    def run(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> None:
        if not chosen:
            chosen.append(choice.fastest(key, _ATTENTION, lambda backend: compute(backend, q, k, v, mask)))
        result = compute(chosen[0], q, k, v, mask).transpose(1, 2)
        out.view(result.shape).copy_(result)

    return lowered.step(node, run, (q, k, v, mask), made.shape, made.dtype, "scaled dot product attention")
