"""Norms of rows, with what comes before and after them in the same launch.

Before: the sum that is normed, of a product, its bias and a residual, or of a residual and what a gate lets through of a product.
After: a scale and a shift, as transformers take them from the timestep, or a rotary embedding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ...capture import op_name
from ...passes.channels_last import arguments
from ..lowering import Lowered
from ..values import Ref, Step
from . import norm_kernels, products, rotary
from .chains import Chain, Instructions
from .light import blocks, fits, power, starts_early
from .strides import ALIGNED, Rows, Spread, collapsed, ordered

# Numbers that one program has in hand, of short rows and of longer ones, where there are rows for so many programs.
_TILE, _LONG, _BUSY = 1024, 2048, 1024
# The smallest block that is worth it, and the longest rows of which one warp has four in hand, in two blocks.
_REST, _FOUR = 32, 640
_Maybe = torch.Tensor | None


def _tiles(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Rows of one program, its warps, and the blocks for the columns, the second of which may be 0.

    The more work there is, the less of it is shared by warps, which wait for each other to add up. In float16 on an H200, with a
    sum, on tensors in the cache: 8192 rows of 640 numbers take 8.3 microseconds with four rows in one warp, in blocks of 512 and
    128, 9.8 with two rows in two warps, 11.2 in four; 2048 rows of 640 take 3.6 with two rows in two warps, 4.0 in four.
    """
    block = power(columns)
    rest = power(columns - block // 2)
    middle = _LONG // 4 <= block <= _LONG
    if middle and columns <= _FOUR and _REST <= rest < block // 2 and rows >= 8 * _BUSY:
        return 4, 1, block // 2, rest
    many = max(2, _LONG // block) if middle else max(1, _TILE // block)
    if many * _BUSY > rows:
        return 1, max(1, min(8, block // 256)), block, 0
    if middle:
        return many, 2 if block <= _TILE else 4, block, 0
    return many, 1 if block <= _TILE else min(8, block // 512), block, 0


@dataclass(frozen=True)
class RowNorm:
    """The row norm of one step.

    Attributes:
        node: that it is the lowering of.
        rows, columns: of the result, as it lies in memory.
        source: the rows that are read.
        per, period: of gate, factor and addend, as in `strides.Spread`.
        one: added to the factor.
        turns: the norm is rotated, by the factor as cosine and the addend as sine.
    """

    node: torch.fx.Node
    rows: int
    columns: int
    eps: float
    rms: bool
    source: Rows
    per: int = 1
    period: int = 1
    one: float = 0.0
    turns: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """What else than shapes decides how its kernel is compiled."""
        return (self.rms, self.source, self.per, self.period, self.turns)

    def __call__(
        self, out: torch.Tensor, x: torch.Tensor, plus: _Maybe, residual: _Maybe, gate: _Maybe, weight: _Maybe, bias: _Maybe,
        factor: _Maybe, addend: _Maybe,
    ) -> None:  # fmt: skip
        """Fill `out` (..., columns), in the order of the rows, a part of a dense tensor; or (2, ..., columns) with a residual."""
        many, warps, block, rest = _tiles(self.rows, self.columns)
        masked = self.rows % many > 0
        # So many rows follow each other in `out`, and then so many of other parts, if it is a part: whose rows are as long.
        dims = [] if out.is_contiguous() else collapsed(out.shape[:-1], out.stride()[:-1])
        inner = dims[-1][0] if len(dims) > 1 else 1
        gap = dims[0][1] // self.columns - inner if dims else 0
        norm_kernels.row_norm_kernel[blocks(self.rows, many)](
            out, x, plus, residual, gate, weight, bias, factor, addend,
            self.rows, self.columns, self.rows * self.columns, self.eps, self.source.span, self.source.jump, self.source.step,
            self.per, self.period, *(0 if t is None or len(t) == 1 else t.stride(0) for t in (gate, factor, addend)), self.one,
            inner, gap, self.rms, residual is not None, plus is not None, gate is not None, weight is not None,
            bias is not None, factor is not None, addend is not None, self.turns, many, block, rest,
            masked or block > self.columns, masked or block + rest > self.columns, starts_early(x.device), num_warps=warps,
        )  # fmt: skip

    def absorb(
        self, lowered: Lowered, node: torch.fx.Node, at: int, operands: Sequence[Ref], instructions: Instructions
    ) -> Ref | None:
        """Do what a chain does to this norm in its kernel, or to the concatenation of norms that it is the first of."""
        own = cast(Sequence[torch.fx.Node], node.args[0])[at]
        end = _End.of(own, node, at, operands, instructions)
        if end is None:
            return None
        if own is not self.node:
            return self._joined(lowered, node, own, end)
        step = operands[at].source
        if not isinstance(step, Step) or (made := self._ended(step.args, end, step.number)) is None:
            return None
        step.run, step.args = made
        step.kernel += end.name
        return operands[at]

    def _joined(self, lowered: Lowered, node: torch.fx.Node, cat: torch.fx.Node, end: "_End") -> Ref | None:
        """A step in whose result all norms that `cat` joins have their places, and ends."""
        dim: int = arguments(cat, ("tensors", "dim"), (None, 0))[1] % len(end.shape)
        order, made, start = self.source.order, [], 0
        for part in cast(Sequence[torch.fx.Node], cat.args[0]):
            ref = lowered.value(part)
            step = ref.source
            if not isinstance(step, Step) or not isinstance(step.run, RowNorm) or step.run.node is not part:
                return None
            alike = step.run.source.order == order and step.like.dtype == cat.meta["val"].dtype
            if not alike or set(part.users) != {cat} or step.args[2] is not None:
                return None
            ended = step.run._ended(step.args, end.part(dim, start, ref.shape[dim]), len(lowered.steps))
            if ended is None:
                return None
            made.append((*ended, ref.shape[dim]))
            start += ref.shape[dim]
        # Rows are counted in 32 bits.
        if op_name(cat) != "aten.cat.default" or dim == len(order) - 1 or end.shape.numel() // self.columns >= 1 << 31:
            return None
        run = Joined(tuple(norm for norm, _, _ in made), tuple(size for _, _, size in made), order.index(dim))
        name = f"triton {'rms' if self.rms else 'layer'} norms, joined{end.name}"
        sizes = [end.shape[d] for d in order]
        return ordered(lowered.step(node, run, tuple(args for _, args, _ in made), sizes, cat.meta["val"].dtype, name), order)

    def _ended(self, args: tuple[Any, ...], end: "_End", number: int) -> tuple["RowNorm", tuple[Any, ...]] | None:
        """This norm and its arguments with something at its end, all of which is there before step `number`."""
        gate = args[3]
        if any(a is not None for a in args[-2:]) or end.shape[-1] != self.columns:
            return None
        spreads = [None if ref is None else Spread.of(ref, end.shape, self.source.order) for ref in (end.factor, end.addend)]
        for spread, ref in zip(spreads, (end.factor, end.addend)):
            late = ref is not None and isinstance(ref.source, Step) and ref.source.number >= number
            if late or (spread is None and ref is not None):
                return None
        common = Spread.common([*spreads, None if gate is None else Spread(gate, self.per, self.period)])
        if common is None:
            return None
        run = replace(self, per=common[0], period=common[1], one=end.one, turns=end.turns)
        return run, (*args[:-2], *(None if spread is None else spread.ref for spread in spreads))


@dataclass(frozen=True)
class Joined:
    """Row norms side by side in one result, each in a launch of its own.

    Attributes:
        norms: the parts, in order, all without a residual.
        sizes: of the parts, in dimension `dim` of the result.
    """

    norms: tuple[RowNorm, ...]
    sizes: tuple[int, ...]
    dim: int

    @property
    def kind(self) -> tuple[Any, ...]:
        """As of a `RowNorm`."""
        return tuple(norm.kind for norm in self.norms)

    def __call__(self, out: torch.Tensor, *parts: tuple[Any, ...]) -> None:
        """Fill `out`, dense in the order of the rows, from the arguments of each norm."""
        for norm, place, args in zip(self.norms, out.split(self.sizes, self.dim), parts):
            norm(place, *args)


@dataclass(frozen=True)
class _End:
    """What follows a norm of a shape: ``* (factor + one) + addend``, or a rotation."""

    shape: torch.Size
    factor: Ref | None
    addend: Ref | None
    one: float
    turns: bool

    @staticmethod
    def of(
        norm: torch.fx.Node, node: torch.fx.Node, at: int, operands: Sequence[Ref], instructions: Instructions
    ) -> "_End | None":
        """Of a chain `node` whose operand `at` is the norm, which nothing else reads."""
        nodes, made = cast(Sequence[torch.fx.Node], node.args[0]), node.meta["val"]
        if nodes[at] is not norm or (made.shape, made.dtype) != (operands[at].shape, operands[at].dtype):
            return None
        found: tuple[int | None, int | None, float] | None = None
        turns = len(norm.users) == 2  # by one of them, on the way to its pairs turned
        if turns and (rotation := rotary.rotation(node, at, instructions)) is not None:
            found = (*rotation, 0.0)
        elif set(norm.users) == {node}:
            found = _modulation(at, instructions, len(operands))
        if found is None:
            return None
        factor, addend = (None if i is None else operands[i] for i in found[:2])
        number, factor = (0.0, factor) if factor is None or turns else _without_number(factor)
        return _End(made.shape, factor, addend, found[2] + number, turns)

    @property
    def name(self) -> str:
        """What it adds to the name of a kernel."""
        return ", rotated" if self.turns else ", modulated"

    def part(self, dim: int, start: int, size: int) -> "_End":
        """What follows a part of the norm."""

        def of(ref: Ref | None) -> Ref | None:
            shape = tuple(self.shape)
            return None if ref is None else ref.through(lambda t: t.expand(shape).narrow(dim, start, size))

        sizes = torch.Size([*self.shape[:dim], size, *self.shape[dim + 1 :]])
        return replace(self, shape=sizes, factor=of(self.factor), addend=of(self.addend))


def _modulation(at: int, instructions: Instructions, count: int) -> tuple[int | None, int | None, float] | None:
    """Which operands of `count` are factor and addend, and the one, where a chain is ``operand at * (factor + one) + addend``."""
    value, one, plus = at, 0.0, {}
    found: dict[str, int] = {}
    for place, (code, a, b, number) in enumerate(instructions, count):
        if code == "add_scalar" and a < count and a != at:
            plus[place] = (a, float(number))
            continue
        other, more = plus.get(b if a == value else a, (b if a == value else a, 0.0))
        known = code in found or "add" in found or other >= count or (code == "add" and more != 0.0)
        if code not in ("mul", "add") or value not in (a, b) or a == b or known:
            return None
        found[code], value, one = other, place, one + more
    return found.get("mul"), found.get("add"), one


def _without_number(ref: Ref) -> tuple[float, Ref]:
    """A number, and what a chain adds it to, where that is how `ref` is made; else 0 and `ref`."""
    made = ref.source
    number = made.run.number if isinstance(made, Step) and isinstance(made.run, Chain) else None
    if number is None or not isinstance(made, Step) or not ref.like.is_contiguous() or ref.shape.numel() != made.like.numel():
        return 0.0, ref
    (before,) = made.args
    shape = ref.shape
    try:
        return (number, before.through(lambda t: t.view(shape))) if before.shape.numel() == shape.numel() else (0.0, ref)
    except RuntimeError:  # it has other strides
        return 0.0, ref


def _gated(lowered: Lowered, ref: Ref, columns: int) -> tuple[Ref, Ref, Spread] | None:
    """What a gate lets through, what that is added to, and the gate, for whoever reads the sum, alone so far, and adds there."""
    made = ref.source
    if not isinstance(made, Step) or not isinstance(made.run, Chain) or made.run.gated is None:
        return None
    shape = made.like.shape
    one, other, residual = (made.args[i] for i in made.run.gated)
    x, gate = (one, other) if one.shape == shape else (other, one)
    if any(r.shape != shape or not r.like.is_contiguous() for r in (x, residual)) or shape[-1] != columns:
        return None
    if not ref.like.is_contiguous() or ref.shape.numel() != shape.numel() or made.like.nbytes % ALIGNED:
        return None
    if lowered.is_read(made):
        return None
    spread = Spread.of(gate, shape, range(len(shape)))
    return None if spread is None else (x, residual, spread)


def row_norm(
    lowered: Lowered,
    node: torch.fx.Node,
    x: Ref,
    shape: Sequence[int],
    weight: Ref | None,
    bias: Ref | None,
    eps: float,
    rms: bool,
) -> Ref | None:
    """A layer norm or an RMS norm over the last dimensions of `shape`; None where the kernel does not take it."""
    columns = math.prod(shape)
    if not fits(x, weight, bias) or columns > 16384 or x.shape.numel() // max(1, columns) >= 1 << 31:
        return None
    whole, dtype = x.shape, x.dtype
    plus = residual = gate = None
    if (gated := _gated(lowered, x, columns)) is not None:
        x, residual, gate = gated
    elif (ends := products.without_ends(lowered, x, columns)) is not None:
        plus, residual = ends
    rows = Rows.of(x.like) if len(shape) == 1 and residual is None else None
    if rows is None:
        x, rows = lowered.contiguous(node, x), Rows.dense(len(whole), columns)
    per, period = (1, 1) if gate is None else (gate.per, gate.period)
    run = RowNorm(node, whole.numel() // columns, columns, float(eps), rms, rows, per, period)
    sizes = [whole[d] for d in rows.order]
    args = (x, plus, residual, None if gate is None else gate.ref, weight, bias, None, None)
    name = "triton rms norm" if rms else "triton layer norm"
    made = lowered.step(node, run, args, sizes if residual is None else (2, *sizes), dtype, name)
    if residual is not None:
        lowered.replace(node.all_input_nodes[0], made.through(lambda t: t[0]))
        made = made.through(lambda t: t[1])
    return ordered(made, rows.order)
