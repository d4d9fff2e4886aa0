"""Lowerings on CUDA of what is bound by memory."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

from ...capture import op_name
from ..lowering import Lowered
from ..values import Ref, Step
from . import chains, kernels, rotary
from .chains import Instructions
from .table import on_cuda

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Numbers that one program of an elementwise kernel does, with 4 warps.
_BLOCK = 1024


def fits(*tensors: Ref | None) -> bool:
    """Whether the kernels take these dtypes."""
    return all(t is None or t.dtype in _FLOATS for t in tensors)


@functools.cache
def starts_early(device: torch.device) -> bool:
    """Whether a kernel may start while the one before it still runs, and wait for its results by itself (from Hopper on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def blocks(size: int, block: int) -> tuple[int]:
    """The grid of programs that do `block` numbers each."""
    return (-(-size // block),)


def power(n: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, n - 1).bit_length()


def finish(
    out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, act: str, act_first: bool
) -> None:
    """``out = act(x + bias + residual)``, or ``act(x + bias) + residual``, of dense tensors; `out` may be `x`."""
    kernels.finish_kernel[blocks(out.numel(), _BLOCK)](
        out, x, bias, residual, out.numel(), out.shape[-1], bias is not None, residual is not None, suited(act, out.dtype),
        act_first, _BLOCK, _wide(x), num_warps=4,
    )  # fmt: skip


def _wide(x: torch.Tensor) -> bool:
    """Whether indices take 64 bits."""
    return x.numel() + _BLOCK >= 1 << 31


def suited(act: str, dtype: torch.dtype) -> str:
    """The activation's name in `kernels.activate` for results of a dtype."""
    return "gelu_half" if act == "gelu" and dtype != torch.float32 else act


@on_cuda("oneflow.gated.default")
def gated(lowered: Lowered, node: torch.fx.Node, x: Ref, act: str, gate_first: bool = False) -> Any:
    if not fits(x):
        return lowered.in_torch(node, (x, act, gate_first), {})
    x = lowered.contiguous(node, x)
    made = node.meta["val"]
    run = functools.partial(gate, act=act, gate_first=gate_first)
    return lowered.step(node, run, (x,), made.shape, made.dtype, "triton gated")


def gate(out: torch.Tensor, x: torch.Tensor, act: str, gate_first: bool = False) -> None:
    """``out = a * act(b)``, or ``act(a) * b``, of the halves of the last dimension of `x`; both dense."""
    kernels.gated_kernel[blocks(out.numel(), _BLOCK)](
        out, x, out.numel(), out.shape[-1], suited(act, out.dtype), gate_first, _BLOCK, _wide(x), num_warps=4
    )


@on_cuda("oneflow.chain.default")
def chain(
    lowered: Lowered, node: torch.fx.Node, operands: Sequence[Ref], instructions: Instructions, dtype: torch.dtype | None = None
) -> Any:
    made = node.meta["val"]
    if not fits(*operands) or made.dtype not in _FLOATS or not chains.expressible(instructions):
        return lowered.in_torch(node, (operands, instructions, dtype), {})
    nodes: Any = node.args[0]
    for at, own in enumerate(nodes):
        first = own.args[0][0] if op_name(own) == "aten.cat.default" else own
        made_by = lowered.value(first).source
        run = made_by.run if isinstance(made_by, Step) else None
        if isinstance(run, chains.Absorbs) and (whole := run.absorb(lowered, node, at, operands, instructions)) is not None:
            return whole
    sources = {i: lowered.value(source) for i, own in enumerate(nodes) if (source := rotary.turned(own)) is not None}
    read = [sources.get(i, operand) for i, operand in enumerate(operands)]
    strides = [ref.like.stride() for ref in read]
    of_pairs = chains.Chain(tuple(made.shape), [tuple(ref.shape) for ref in read], strides, instructions, [*sources])
    return lowered.step(node, of_pairs, tuple(read), made.shape, made.dtype, "triton chain")


@on_cuda("aten.masked_fill.Tensor")
def masked_fill(lowered: Lowered, node: torch.fx.Node, x: Ref, mask: Ref, value: Ref) -> Any:
    return _where(lowered, node, mask, value, x)


@on_cuda("aten.index_put.default")
def index_put(
    lowered: Lowered, node: torch.fx.Node, x: Ref, indices: Sequence[Ref | None], values: Ref, accumulate: bool = False
) -> Any:
    mask = indices[0]
    if len(indices) > 1 or mask is None or mask.dtype != torch.bool or accumulate or values.shape.numel() != 1:
        return lowered.in_torch(node, (x, indices, values, accumulate), {})
    # One value wherever the mask is: to list those places torch would wait for the GPU.
    for _ in range(len(x.shape) - len(mask.shape)):
        mask = mask.through(lambda m: m.unsqueeze(-1))
    return _where(lowered, node, mask, values.through(lambda v: v.view(())), x)


def _where(lowered: Lowered, node: torch.fx.Node, mask: Ref, value: Ref, other: Ref) -> Ref:
    made = node.meta["val"]

    def run(out: torch.Tensor, mask: torch.Tensor, value: torch.Tensor, other: torch.Tensor) -> None:
        torch.where(mask, value.to(other.dtype), other, out=out)

    return lowered.step(node, run, (mask, value, other), made.shape, made.dtype, "torch where")
