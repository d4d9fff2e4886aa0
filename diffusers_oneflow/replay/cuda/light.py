"""Lowerings on CUDA of what is bound by memory."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..lowering import Lowered
from ..values import Ref
from . import chains, kernels
from .chains import Instructions
from .table import on_cuda

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Elements that one program reads at a time; channels of them in a group norm, whose work is shared by about so many programs,
# each with a part of the channels and one of at most so many parts of the positions.
_TILE, _COLUMNS, _PROGRAMS, _SPLITS = 4096, 128, 528, 128


def fits(*tensors: Ref | None) -> bool:
    """Whether the kernels take these dtypes."""
    return all(t is None or t.dtype in _FLOATS for t in tensors)


def _blocks(size: int, block: int) -> tuple[int]:
    return (-(-size // block),)


def power(n: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, n - 1).bit_length()


def finish(
    out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, act: str, act_first: bool
) -> None:
    """``out = act(x + bias + residual)``, or ``act(x + bias) + residual``, of dense tensors; `out` may be `x`."""
    block = 1024
    kernels.finish_kernel[_blocks(out.numel(), block)](
        out, x, bias, residual, out.numel(), out.shape[-1], bias is not None, residual is not None, act, act_first, block,
        num_warps=4,
    )  # fmt: skip


def gate(out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, act: str, gate_first: bool) -> None:
    """The gate of GEGLU and its like on dense tensors, with the bias of the product before."""
    block = 1024
    kernels.gated_kernel[_blocks(out.numel(), block)](
        out, x, bias, out.numel(), out.shape[-1], bias is not None, act, gate_first, block, num_warps=4
    )


@on_cuda("oneflow.gated.default")
def gated(lowered: Lowered, node: torch.fx.Node, x: Ref, act: str, gate_first: bool = False) -> Any:
    if not fits(x):
        return lowered.in_torch(node, (x, act, gate_first), {})
    x = lowered.contiguous(node, x)
    made = node.meta["val"]

    def run(out: torch.Tensor, x: torch.Tensor) -> None:
        gate(out, x, None, act, gate_first)

    return lowered.step(node, run, (x,), made.shape, made.dtype, "triton gated")


@on_cuda("oneflow.group_norm.default")
def group_norm(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    groups: int,
    weight: Ref | None,
    bias: Ref | None,
    eps: float,
    act: str = "none",
    channels_last: bool = True,
) -> Any:
    if not channels_last or not fits(x, weight, bias) or (weight is None) != (bias is None):
        return lowered.in_torch(node, (x, groups, weight, bias, eps, act, channels_last), {})
    x = lowered.contiguous(node, x)
    n, channels = x.shape[0], x.shape[-1]
    positions, group = math.prod(x.shape[1:-1]), channels // groups
    columns = min(power(channels), _COLUMNS)
    rows = _TILE // columns
    across = -(-channels // columns)
    splits = max(1, min(_PROGRAMS // (n * across), _SPLITS, positions // rows))
    chunk = -(-positions // splits)
    splits = -(-positions // chunk)

    def run(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        stats = torch.empty((n, splits, channels, 2), dtype=torch.float32, device=x.device)
        moments = torch.empty((n, groups, 2), dtype=torch.float32, device=x.device)
        grid = (n * splits, across)
        kernels.channel_stats_kernel[grid](x, stats, positions, channels, chunk, splits, rows, columns, num_warps=4)
        kernels.group_moments_kernel[(n * groups,)](
            moments,
            stats,
            positions,
            channels,
            groups,
            group,
            chunk,
            splits,
            float(eps),
            power(splits),
            power(group),
            num_warps=4,
        )
        kernels.group_apply_kernel[grid](
            out, x, moments, weight, bias, positions, channels, groups, group, chunk, splits, weight is not None, act, rows,
            columns, num_warps=4,
        )  # fmt: skip

    return lowered.step(node, run, (x, weight, bias), x.shape, x.dtype, "triton group norm")


def _row_norm(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    shape: Sequence[int],
    weight: Ref | None,
    bias: Ref | None,
    eps: float,
    rms: bool,
) -> Ref | None:
    columns = math.prod(shape)
    if not fits(x, weight, bias) or columns > 16384:
        return None
    x = lowered.contiguous(node, x)
    rows, block = math.prod(x.shape) // columns, power(columns)

    many = max(1, _TILE // 2 // block)

    def run(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        kernels.row_norm_kernel[_blocks(rows, many)](
            out, x, weight, bias, rows, columns, float(eps), rms, weight is not None, bias is not None, many, block,
            num_warps=4 if block <= 2048 else 8,
        )  # fmt: skip

    return lowered.step(node, run, (x, weight, bias), x.shape, x.dtype, "triton rms norm" if rms else "triton layer norm")


@on_cuda("aten.layer_norm.default")
def layer_norm(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    shape: Sequence[int],
    weight: Ref | None = None,
    bias: Ref | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    made = _row_norm(lowered, node, x, shape, weight, bias, eps, False)
    return made or lowered.in_torch(node, (x, shape, weight, bias, eps), {})


@on_cuda("aten.rms_norm.default")
def rms_norm(
    lowered: Lowered, node: torch.fx.Node, x: Ref, shape: Sequence[int], weight: Ref | None = None, eps: float | None = None
) -> Any:
    value = torch.finfo(x.dtype).eps if eps is None else eps
    return _row_norm(lowered, node, x, shape, weight, None, value, True) or lowered.in_torch(node, (x, shape, weight, eps), {})


@on_cuda("oneflow.chain.default")
def chain(
    lowered: Lowered, node: torch.fx.Node, operands: Sequence[Ref], instructions: Instructions, dtype: torch.dtype | None = None
) -> Any:
    made = node.meta["val"]
    if not fits(*operands) or made.dtype not in _FLOATS or not chains.expressible(instructions):
        return lowered.in_torch(node, (operands, instructions, dtype), {})
    run = chains.runner(tuple(made.shape), [tuple(o.shape) for o in operands], [o.like.stride() for o in operands], instructions)
    return lowered.step(node, run, tuple(operands), made.shape, made.dtype, "triton chain")


@on_cuda("aten.cat.default")
def cat(lowered: Lowered, node: torch.fx.Node, tensors: Sequence[Ref], dim: int = 0) -> Any:
    made = node.meta["val"]
    if len({t.dtype for t in tensors}) > 1 or any(t.shape.numel() == 0 for t in tensors):
        return lowered.in_torch(node, (tensors, dim), {})

    def run(out: torch.Tensor, *parts: torch.Tensor) -> None:
        torch.cat(parts, dim, out=out)

    return lowered.step(node, run, tuple(tensors), made.shape, made.dtype, "cat")


@on_cuda("oneflow.upsample_nearest2d.default")
def upsample_nearest2d(lowered: Lowered, node: torch.fx.Node, x: Ref, size: Sequence[int]) -> Any:
    n, h, w, c = x.shape
    if size[0] % h or size[1] % w:
        return lowered.in_torch(node, (x, size), {})
    up, wide = size[0] // h, size[1] // w

    def run(out: torch.Tensor, x: torch.Tensor) -> None:
        out.view(n, h, up, w, wide, c).copy_(x[:, :, None, :, None])

    return lowered.step(node, run, (x,), (n, *size, c), x.dtype, "copy")
