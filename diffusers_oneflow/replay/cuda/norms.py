"""Lowerings on CUDA of norms, by Triton."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..lowering import Lowered
from ..values import Ref, Step
from . import norm_kernels
from .chains import Chain
from .light import fits, power, starts_early
from .moves import Cat
from .row_norms import row_norm
from .strides import ALIGNED
from .table import on_cuda

# Numbers in the registers of one program of a group norm, channels of it, and parts of an image's positions.
_HELD, _COLUMNS, _SPLITS = 16384, 64, 64
# Numbers of one warp where moments are merged, and of one program of the last launch.
_MERGED, _APPLIED = 512, 2048
# A group of so many numbers has one program, which reads them once: 6.3 microseconds for 8.5 at 16x16x1280 on an H200.
_ALONE = 16384
_Maybe = torch.Tensor | None


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
    # Places within an image are counted in 32 bits.
    large = math.prod(x.shape[1:]) >= 1 << 31
    if not channels_last or large or not fits(x, weight, bias) or (weight is None) != (bias is None):
        return lowered.in_torch(node, (x, groups, weight, bias, eps, act, channels_last), {})
    norm = GroupNorm(groups, eps, act)
    joined = JoinedGroupNorm(norm)
    if (parts := _joined(lowered, x, joined)) is not None:
        both = lowered.step(node, joined, (*parts, weight, bias), (2, *x.shape), x.dtype, "triton group norm, joined")
        lowered.replace(node.all_input_nodes[0], both.through(lambda t: t[0]))
        return both.through(lambda t: t[1])
    x, shift = _without_shift(node, x)
    x = lowered.contiguous(node, x)
    return lowered.step(node, norm, (x, shift, weight, bias), x.shape, x.dtype, "triton group norm")


def _joined(lowered: Lowered, x: Ref, how: "JoinedGroupNorm") -> tuple[Ref, Ref] | None:
    """The two tensors whose channels were joined for a norm, which does that on the way; nothing has read what was joined yet."""
    made = x.source
    if not (isinstance(made, Step) and isinstance(made.run, Cat) and made.run.dim == len(x.shape) - 1) or x.views:
        return None
    if len(made.args) != 2 or not all(part.like.is_contiguous() for part in made.args) or made.like.nbytes % ALIGNED:
        return None
    if lowered.is_read(made):
        return None
    first, second = made.args
    return (first, second) if how.fits(x.shape, first.shape[-1]) else None


def _without_shift(node: torch.fx.Node, x: Ref) -> tuple[Ref, Ref | None]:
    """What a timestep's embedding was added to, and the embedding (n, channels): the norm adds it on the way."""
    made = x.source
    read_once = len(getattr(node.all_input_nodes[0], "users", ())) == 1
    if not (isinstance(made, Step) and isinstance(made.run, Chain) and made.run.is_sum and read_once) or x.views:
        return x, None
    whole, other = sorted(made.args, key=lambda ref: -ref.shape.numel())
    n, channels = x.shape[0], x.shape[-1]
    if (
        whole.shape != x.shape
        or whole.dtype != x.dtype
        or tuple(other.shape) != (n, *[1] * (len(x.shape) - 2), channels)
        or other.like.stride(-1) != 1
    ):
        return x, None
    return whole, other.through(lambda t: t.as_strided((n, channels), (t.stride(0), 1)))


class GroupNorm:
    """The group norm of one step: small groups each in the registers of one program, others in three launches."""

    def __init__(self, groups: int, eps: float, act: str) -> None:
        self._groups, self._eps, self._act = groups, float(eps), act
        self.kind = (groups, act)

    def __call__(self, out: torch.Tensor, x: torch.Tensor, shift: _Maybe, weight: _Maybe, bias: _Maybe) -> None:
        """Fill `out` from x (n, ..., channels), and `shift` (n, channels) to be added to it."""
        tiles = self.tiles(x.shape)
        if tiles is None:
            self._alone(math.prod(x.shape[1:-1]), out, x, shift, weight, bias)
        else:
            self.run(tiles, out, x, shift, weight, bias)

    def tiles(self, shape: Sequence[int]) -> "Tiles | None":
        """For three launches; None where one is enough."""
        positions, channels = math.prod(shape[1:-1]), shape[-1]
        group = channels // self._groups
        return None if power(positions) * power(group) <= _ALONE else Tiles.of(positions, channels, group)

    def _alone(self, positions: int, out: torch.Tensor, x: torch.Tensor, shift: _Maybe, weight: _Maybe, bias: _Maybe) -> None:
        n, channels, rows, columns = x.shape[0], x.shape[-1], power(positions), power(x.shape[-1] // self._groups)
        norm_kernels.group_norm_kernel[(self._groups, n)](
            out, x, x if shift is None else shift, _apart(shift), weight, bias, positions, channels, self._eps,
            *self._flags(shift), channels // self._groups, weight is not None, self._kernel_act, rows, columns,
            num_warps=max(1, min(16, rows * columns // 1024)),
        )  # fmt: skip

    def _flags(self, shift: _Maybe) -> tuple[int, int]:
        return int(self._act != "none"), int(shift is not None)

    @property
    def _kernel_act(self) -> str:
        return "silu" if self._act == "none" else self._act

    def run(
        self, tiles: "Tiles", out: torch.Tensor, x: torch.Tensor, shift: _Maybe, weight: _Maybe, bias: _Maybe,
        parts: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Compute in three launches, the first with such tiles: moments, what they make of the numbers, and that.

        The second has one small program for each group: in each program of the third the same would take longer than the rest.

        Args:
            parts: whose channels are `x`, which is filled; the first has a multiple of `tiles.columns` of them.
        """
        n, channels, group, positions = x.shape[0], x.shape[-1], x.shape[-1] // self._groups, math.prod(x.shape[1:-1])
        partial = torch.empty((n, tiles.splits, 2, channels), dtype=torch.float32, device=x.device)
        ends = torch.empty((n, 2, channels), dtype=torch.float32, device=x.device)
        early = starts_early(x.device)
        waits = {"launch_pdl": True} if early else {}
        first, second = (x, x) if parts is None else parts
        norm_kernels.moments_kernel[(tiles.splits, -(-channels // tiles.columns), n)](
            partial, first, second, x, first.shape[-1], positions, channels, tiles.chunk, tiles.splits, tiles.rows, tiles.columns,
            tiles.chunk <= tiles.rows, early, parts is not None, num_warps=tiles.warps,
        )  # fmt: skip
        active, shifted = self._flags(shift)
        merged = power(group), _parts(tiles.splits)
        norm_kernels.merge_kernel[(self._groups, n)](
            ends, x if shift is None else shift, _apart(shift), weight, bias, partial, positions, channels, tiles.chunk,
            self._eps, shifted, tiles.splits, group, weight is not None, *merged, early,
            num_warps=max(1, min(8, math.prod(merged) // _MERGED)), **waits,
        )  # fmt: skip
        columns = min(_COLUMNS, power(channels))
        rows = _APPLIED // columns
        norm_kernels.apply_kernel[(-(-positions // rows), -(-channels // columns), n)](
            out,
            x,
            ends,
            positions,
            channels,
            active,
            self._kernel_act,
            rows,
            columns,
            early,
            parts is not None,
            num_warps=4,
            **waits,
        )


class JoinedGroupNorm:
    """The group norm of a concatenation of channels, which its first launch writes: nothing reads it to join it."""

    def __init__(self, norm: GroupNorm) -> None:
        self._norm = norm
        self.kind = norm.kind

    def fits(self, shape: Sequence[int], first: int) -> bool:
        """Whether it takes three launches, and no program of the first has channels of both tensors, the first with so many."""
        tiles = self._norm.tiles(shape)
        return tiles is not None and first % tiles.columns == 0

    def __call__(self, out: torch.Tensor, first: torch.Tensor, second: torch.Tensor, weight: _Maybe, bias: _Maybe) -> None:
        """Fill `out` (2, n, ..., channels), what is joined and its norm, from tensors (n, ..., some of the channels)."""
        joined, normed = out
        tiles = self._norm.tiles(joined.shape)
        assert tiles is not None  # `fits` has seen to it
        self._norm.run(tiles, normed, joined, None, weight, bias, (first, second))


def _apart(shift: _Maybe) -> int:
    return 0 if shift is None else shift.stride(0)


def _parts(splits: int) -> int:
    """A power of four that is not less: between them, each would be compiled for little gain."""
    return power(splits) if power(splits).bit_length() % 2 else 2 * power(splits)


@dataclass(frozen=True)
class Tiles:
    """How a group norm is shared by programs.

    Attributes:
        columns: channels of one program, a power of two.
        splits: parts of the positions, of `chunk` each.
        rows: positions that a program has in hand, a power of two.
    """

    columns: int
    splits: int
    chunk: int
    rows: int

    @property
    def warps(self) -> int:
        """Of one program: each thread has 32 to 64 numbers in hand."""
        return max(1, min(8, self.rows * self.columns // 1024))

    @staticmethod
    def of(positions: int, channels: int, group: int) -> "Tiles":
        """Whole sectors of the memory, as many positions as registers hold, and not more parts than are merged quickly."""
        columns = min(_COLUMNS, power(channels))
        held = _HELD // columns
        most = max(1, min(_SPLITS, _HELD // power(group)))
        chunk = max(min(held, positions), -(-positions // most))
        rows = power(chunk) if chunk <= held else held // 2
        return Tiles(columns, -(-positions // chunk), chunk, rows)


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
    made = row_norm(lowered, node, x, shape, weight, bias, eps, False)
    return made or lowered.in_torch(node, (x, shape, weight, bias, eps), {})


@on_cuda("aten.rms_norm.default")
def rms_norm(
    lowered: Lowered, node: torch.fx.Node, x: Ref, shape: Sequence[int], weight: Ref | None = None, eps: float | None = None
) -> Any:
    # On a GPU torch takes the epsilon of the dtype that it computes in, of float16 too.
    value = torch.finfo(torch.float32).eps if eps is None else eps
    return row_norm(lowered, node, x, shape, weight, None, value, True) or lowered.in_torch(node, (x, shape, weight, eps), {})
