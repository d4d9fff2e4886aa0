"""Lowerings on CUDA of norms, by Triton."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..lowering import Lowered
from ..values import Ref, Step
from . import kernels, memory
from .chains import Chain
from .light import blocks, fits, power
from .table import on_cuda

# Numbers that one program of a row norm has in hand.
_TILE = 2048
# Numbers in the registers of one program of a group norm; channels of a group that has programs of its own; those that several
# groups have together else.
_HELD, _LEAST, _COLUMNS = 16384, 8, 128
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
    x, shift = _without_shift(node, x)
    x = lowered.contiguous(node, x)
    return lowered.step(node, GroupNorm(groups, eps, act), (x, shift, weight, bias), x.shape, x.dtype, "triton group norm")


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
    """The group norm of one step: in one launch, or in two where the GPU cannot run all of its programs at the same time."""

    def __init__(self, groups: int, eps: float, act: str) -> None:
        self._groups, self._eps, self._act = groups, float(eps), act
        self.key = (groups, act)
        self._together = True

    def __call__(self, out: torch.Tensor, x: torch.Tensor, shift: _Maybe, weight: _Maybe, bias: _Maybe) -> None:
        """Fill `out` from x (n, ..., channels), and `shift` (n, channels) to be added to it."""
        tiles = Tiles.of(
            x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1] // self._groups, self._groups, _multiprocessors(x.device)
        )
        if self._together and x.is_cuda:
            try:
                self.run(tiles, True, out, x, shift, weight, bias)
                return
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # the launch: a part of a GPU may have fewer multiprocessors than it says
                self._together = False
        self.run(tiles, False, out, x, shift, weight, bias)

    def run(
        self, tiles: "Tiles", together: bool, out: torch.Tensor, x: torch.Tensor, shift: _Maybe, weight: _Maybe, bias: _Maybe
    ) -> None:
        """Compute with such tiles, in one launch if they run `together`."""
        n, channels, groups, splits = x.shape[0], x.shape[-1], self._groups, tiles.splits
        positions = math.prod(x.shape[1:-1])
        across = -(-groups // tiles.taken)
        partial = torch.empty((n, splits, groups, 2), dtype=torch.float32, device=x.device)
        counter = memory.counters(x.device, splits, across * n)
        phases = ((True, True),) if together or splits == 1 else ((True, False), (False, True))
        # With so few registers two programs share a multiprocessor.
        cooperative = {"launch_cooperative_grid": True, "maxnreg": 128} if together and splits > 1 else {}
        apart = 0 if shift is None else shift.stride(0)
        for add_up, write in phases:
            kernels.group_norm_kernel[(splits, across, n)](
                out, x, shift, apart, weight, bias, partial, counter, positions, channels, groups, tiles.chunk, splits, self._eps,
                channels // groups, tiles.taken, shift is not None, weight is not None, self._act, tiles.rows,
                tiles.columns, power(tiles.taken), power(splits), tiles.chunk <= tiles.rows, add_up, write, num_warps=tiles.warps,
                **cooperative,
            )  # fmt: skip


@dataclass(frozen=True)
class Tiles:
    """How a group norm is shared by programs.

    Attributes:
        taken: groups for one program, in `columns`, a power of two.
        splits: parts of the positions, of `chunk` each.
        rows: positions that a program has in hand, a power of two.
    """

    taken: int
    columns: int
    splits: int
    chunk: int
    rows: int

    @property
    def warps(self) -> int:
        """Of one program: each thread has 32 to 64 numbers in hand."""
        return max(4, min(16 if self.splits == 1 else 8, self.rows * self.columns // 1024))

    @staticmethod
    def of(n: int, positions: int, group: int, groups: int, multiprocessors: int) -> "Tiles":
        """One group for each program where its channels fill what is read at once; as many programs as run at the same time."""
        # Less than that of each position would leave most of what memory delivers unused.
        taken = 1 if group >= _LEAST else min(groups, _COLUMNS // group)
        columns, sets = power(taken * group), n * -(-groups // taken)
        splits = max(1, min(2 * multiprocessors // sets, -(-positions * columns // _HELD), positions))
        if positions * columns <= 2 * _HELD:
            splits = 1
        chunk = -(-positions // splits)
        splits = -(-positions // chunk)
        most = _HELD * 2 if splits == 1 else _HELD
        held = power(chunk) * columns <= most
        return Tiles(taken, columns, splits, chunk, power(chunk) if held else max(1, _HELD // 2 // columns))


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


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

    many = max(1, _TILE // block)

    def run(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        kernels.row_norm_kernel[blocks(rows, many)](
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
