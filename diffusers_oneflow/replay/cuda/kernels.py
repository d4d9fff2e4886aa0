"""Triton kernels: norms, and the end of a product. All compute in float32 and round once."""

import triton
import triton.language as tl


@triton.jit
def activate(x, ACT: tl.constexpr):
    """An activation by its name in `passes.native_ops.ACTIVATIONS`."""
    if ACT == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_half":
        # Abramowitz and Stegun, 7.1.26: erf within 1.5e-7, which half types do not see, in half the time.
        y = tl.abs(x) * 0.7071067811865476
        t = 1.0 / (1.0 + 0.3275911 * y)
        poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        tail = 0.5 * poly * tl.exp(-y * y)
        x = x * tl.where(x < 0.0, tail, 1.0 - tail)
    elif ACT == "gelu_tanh":
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACT == "quick_gelu":
        x = x / (1.0 + tl.exp(-1.702 * x))
    elif ACT == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    elif ACT == "tanh":
        # Near 0 the difference would have no digits left: the series there is within 4e-7.
        y = x * x
        near = x * (1.0 + y * (-0.3333333333 + y * (0.1333333333 - 0.05396825397 * y)))
        x = tl.where(y < 0.0625, near, 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0)
    return x


@triton.jit
def _place(size, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """This program's numbers, and which of them there are. Indices in 64 bits would make divisions slow, so only if they must."""
    at = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    at = at * BLOCK + tl.arange(0, BLOCK)
    return at, at < size


@triton.jit(do_not_specialize=["place", "size"])
def clear_kernel(place, size, BLOCK: tl.constexpr):
    """Zero for `size` words of 32 bits from an address on."""
    at, inside = _place(size, BLOCK, False)
    tl.store(place.to(tl.pointer_type(tl.int32)) + at, tl.zeros((BLOCK,), tl.int32), inside)


@triton.jit
def finish_kernel(
    out, x, bias, residual, size, columns,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr, ACT_FIRST: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """``out = act(x + bias + residual)``, or ``act(x + bias) + residual``; dense (rows, columns), bias by column."""
    at, inside = _place(size, BLOCK, WIDE)
    value = tl.load(x + at, inside).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + at % columns, inside).to(tl.float32)
    if ACT_FIRST:
        value = activate(value, ACT)
    if HAS_RESIDUAL:
        value += tl.load(residual + at, inside).to(tl.float32)
    if not ACT_FIRST:
        value = activate(value, ACT)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@triton.jit
def gated_kernel(out, x, size, columns, ACT: tl.constexpr, GATE_FIRST: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """x (rows, 2 columns) -> ``a * act(b)`` of its halves, or ``act(a) * b``."""
    at, inside = _place(size, BLOCK, WIDE)
    row, column = at // columns, at % columns
    a = tl.load(x + row * (2 * columns) + column, inside).to(tl.float32)
    b = tl.load(x + row * (2 * columns) + columns + column, inside).to(tl.float32)
    if GATE_FIRST:  # noqa: SIM108 (Triton decides this when it compiles)
        value = activate(a, ACT) * b
    else:
        value = a * activate(b, ACT)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


# Each variant takes a third of a second to compile, and a model has 20 kinds of group norms: what costs nothing is no constexpr.
@triton.jit(do_not_specialize=["active", "shifted", "size"])
def group_norm_kernel(
    out, x, shift, apart, weight, bias, positions, channels, eps, active, shifted, size,
    HAS_WEIGHT: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``act((x + shift - mean) / deviation * weight + bias)`` for one group of `size` channels of one image, all in registers.

    x (n, positions, channels) with at most ROWS positions, `size` at most COLUMNS; shift (n, channels) with rows so far `apart`.
    Without `active` there is no activation, and without `shifted` no shift.
    """
    group, image = tl.program_id(0), tl.program_id(1)
    lane, row = tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    own = lane < size
    column = group * size + lane
    inside = (row < positions)[:, None] & own[None, :]
    at = image.to(tl.int64) * positions * channels + row[:, None] * channels + column[None, :]
    # From the first number on, or the sum of numbers far from 0 would lose their differences.
    near = tl.load(x + image.to(tl.int64) * positions * channels + group * size).to(tl.float32)
    value = tl.load(x + at, inside, 0.0).to(tl.float32) - near
    value += tl.load(shift + image * apart + column, own & (shifted != 0), 0.0).to(tl.float32)[None, :]
    count = (positions * size).to(tl.float32)
    value = tl.where(inside, value, 0.0)
    value = tl.where(inside, value - tl.sum(tl.sum(value, 0), 0) / count, 0.0)
    value *= 1.0 / tl.sqrt(tl.sum(tl.sum(value * value, 0), 0) / count + eps)
    if HAS_WEIGHT:
        value *= tl.load(weight + column, own, 0.0).to(tl.float32)[None, :]
        value += tl.load(bias + column, own, 0.0).to(tl.float32)[None, :]
    value = tl.where(active != 0, activate(value, ACT), value)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@triton.jit
def _rows(x, begin, end, channels, column, own, ROWS: tl.constexpr):
    """Columns of some positions, (rows, columns) float32, 0 outside; and which are inside."""
    row = begin + tl.arange(0, ROWS)
    inside = (row < end)[:, None] & own[None, :]
    return tl.load(x + row[:, None] * channels + column[None, :], inside, 0.0).to(tl.float32), inside


@triton.jit(do_not_specialize=["splits"])
def moments_kernel(
    partial, x, positions, channels, chunk, splits,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ONCE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Mean, and sum of squared differences from it, of each channel in each chunk of the positions of x (n, positions, channels).

    They are summed up as differences from the channel's first number, so that nothing cancels. ONCE: a chunk has at most ROWS
    positions. EARLY: the next kernel may start, and wait for this one's results by itself.

    partial (n, splits, 2, channels) float32.
    """
    split, image = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = column < channels
    x += image.to(tl.int64) * positions * channels
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    near = tl.load(x + start * channels + column, own, 0.0).to(tl.float32)
    if ONCE:
        value, inside = _rows(x, start, end, channels, column, own, ROWS)
        value = tl.where(inside, value - near[None, :], 0.0)
        total = tl.sum(value, 0)
        square = tl.sum(value * value, 0)
    else:
        totals = tl.zeros((ROWS, COLUMNS), tl.float32)
        squares = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin in range(start, end, ROWS):
            value, inside = _rows(x, begin, end, channels, column, own, ROWS)
            value = tl.where(inside, value - near[None, :], 0.0)
            totals += value
            squares += value * value
        total = tl.sum(totals, 0)
        square = tl.sum(squares, 0)
    rows = (end - start).to(tl.float32)
    at = partial + (image * splits + split) * 2 * channels + column
    tl.store(at, near + total / rows, own)
    tl.store(at + channels, square - total * total / rows, own)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit(do_not_specialize=["active", "shifted", "splits", "size"])
def normalize_kernel(
    out, x, shift, apart, weight, bias, partial, positions, channels, chunk, eps, active, shifted, splits, size,
    HAS_WEIGHT: tl.constexpr, ACT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr, SPLITS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """The group norm of `group_norm_kernel` in groups of `size` channels, with `partial` of `moments_kernel`.

    Each program merges the moments of all channels of those groups, at most GROUPS in SPAN channels, that its columns belong to:
    first a channel's chunks, then a group's channels (Chan, Golub and LeVeque, 1983). Without `active` there is no activation,
    and without `shifted` no shift.
    """
    split, tile, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    first = tile * COLUMNS // size
    lane, group, part = tl.arange(0, SPAN), tl.arange(0, GROUPS), tl.arange(0, SPLITS)
    span = first * size + lane
    real = (span < channels) & (lane < GROUPS * size)
    known = (part < splits)[:, None] & real[None, :]
    at = partial + (image * splits + part[:, None]) * 2 * channels + span[None, :]
    means, aways = tl.load(at, known, 0.0), tl.load(at + channels, known, 0.0)
    every = positions.to(tl.float32)
    counts = (tl.minimum((part + 1) * chunk, positions) - part * chunk).to(tl.float32)[:, None]
    counts = tl.where(known, counts, 0.0)
    mean = tl.sum(means * counts, 0) / every
    off = tl.where(known, means - mean[None, :], 0.0)
    away = tl.sum(aways + counts * off * off, 0)
    mean += tl.load(shift + image * apart + span, real & (shifted != 0), 0.0).to(tl.float32)
    # By comparing, since a division takes longer than all of this.
    begins = group * size
    member = (lane[:, None] >= begins[None, :]) & (lane[:, None] < begins[None, :] + size) & real[:, None]
    middle = tl.sum(tl.where(member, mean[:, None], 0.0), 0) / size
    apart_from = tl.where(member, mean[:, None] - middle[None, :], 0.0)
    spread = tl.sum(tl.where(member, away[:, None], 0.0) + every * apart_from * apart_from, 0)
    scale = 1.0 / tl.sqrt(spread / (every * size) + eps)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    own = column < channels
    within = column - first * size
    mine = (within[:, None] >= begins[None, :]) & (within[:, None] < begins[None, :] + size)
    factor = tl.sum(tl.where(mine, scale[None, :], 0.0), 1)
    plus = -tl.sum(tl.where(mine, middle[None, :], 0.0), 1)
    plus += tl.load(shift + image * apart + column, own & (shifted != 0), 0.0).to(tl.float32)
    if HAS_WEIGHT:
        factor *= tl.load(weight + column, own, 0.0).to(tl.float32)
    plus *= factor
    if HAS_WEIGHT:
        plus += tl.load(bias + column, own, 0.0).to(tl.float32)
    place = image.to(tl.int64) * positions * channels
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    for begin in range(start, end, ROWS):
        value, inside = _rows(x + place, begin, end, channels, column, own, ROWS)
        result = value * factor[None, :] + plus[None, :]
        result = tl.where(active != 0, activate(result, ACT), result)
        row = begin + tl.arange(0, ROWS)
        tl.store(out + place + row[:, None] * channels + column[None, :], result.to(out.dtype.element_ty), inside)


@triton.jit
def row_norm_kernel(
    out, x, plus, residual, gate, weight, bias, factor, addend,
    rows, columns, apart, eps, span, jump, step, per, period, gates, factors, addends, one, inner, gap,
    RMS: tl.constexpr, SUMS: tl.constexpr, HAS_PLUS: tl.constexpr, GATED: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr, TURNS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Layer norm or RMS norm of `rows` rows of `columns` numbers; then ``* (factor + one) + addend``.

    x: rows as `strides.Rows` has them. gate, factor, addend: as `strides.Spread` has them, with rows `gates`, `factors` and
    `addends` apart.
    SUMS: of ``x + plus + residual``, or with a gate of ``x * gate + residual``; plus (columns,), residual dense. The sum is the
    first of two dense results then, which lie so far `apart`.
    TURNS: what is added is the addend times the pairs of the norm turned, as `rotary` has it.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    own, there = column < columns, row < rows
    inside = there[:, None] & own[None, :]
    begin = (row // span).to(tl.int64) * jump + (row % span).to(tl.int64) * step
    at = (row + (row // inner) * gap).to(tl.int64)[:, None] * columns + column[None, :]
    of = (row // per % period).to(tl.int64)
    value = tl.load(x + begin[:, None] + column[None, :], inside, 0.0).to(tl.float32)
    # From each row's first number on: constant rows stay without any difference, and far from 0 none is lost.
    near = tl.load(x + begin, there, 0.0).to(tl.float32)
    if SUMS:
        if GATED:
            value *= tl.load(gate + of[:, None] * gates + column[None, :], inside, 0.0).to(tl.float32)
            near *= tl.load(gate + of * gates, there, 0.0).to(tl.float32)
        value += tl.load(residual + at, inside, 0.0).to(tl.float32)
        near += tl.load(residual + row.to(tl.int64) * columns, there, 0.0).to(tl.float32)
        if HAS_PLUS:
            value += tl.load(plus + column, own, 0.0).to(tl.float32)[None, :]
            near += tl.load(plus).to(tl.float32)
        tl.store(out + at, value.to(out.dtype.element_ty), inside)
        out += apart
    if not RMS:
        value = tl.where(inside, value - near[:, None], 0.0)
        value = tl.where(inside, value - (tl.sum(value, 1) / columns)[:, None], 0.0)
    value = value / tl.sqrt(tl.sum(value * value, 1) / columns + eps)[:, None]
    if HAS_WEIGHT:
        value *= tl.load(weight + column, own, 0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        value += tl.load(bias + column, own, 0.0).to(tl.float32)[None, :]
    other = value
    if TURNS:
        a, b = tl.split(tl.reshape(value, (ROWS, BLOCK // 2, 2)))
        other = tl.reshape(tl.join(-b, a), (ROWS, BLOCK))
    if HAS_FACTOR:
        value *= tl.load(factor + of[:, None] * factors + column[None, :], inside, 0.0).to(tl.float32) + one
    if HAS_ADDEND:
        addition = tl.load(addend + of[:, None] * addends + column[None, :], inside, 0.0).to(tl.float32)
        if TURNS:
            addition *= other
        value += addition
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["rows", "width", "up", "wide"])
def repeat_kernel(out, x, rows, columns, width, up, wide, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each pixel `wide` times in a row of an image, each row `up` times; out (rows, columns) in images `width` pixels wide."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    source = row // width // up * (width // wide) + row % width // wide
    value = tl.load(x + source.to(tl.int64)[:, None] * columns + column[None, :], inside)
    tl.store(out + row.to(tl.int64)[:, None] * columns + column[None, :], value, inside)


@triton.jit
def fold_kernel(out, weight, channels, inputs, TILE: tl.constexpr):
    """Filters (channels, 3, 3, inputs) to (inputs, 4, 4, channels), where 4 are the sums of the last, the last two, the first
    two, and the first of 3. A program does one row of the 4 for a tile of both channels.
    """
    to = tl.program_id(0) * TILE + tl.arange(0, TILE)
    of = tl.program_id(1) * TILE + tl.arange(0, TILE)
    row = tl.program_id(2)
    inside = (to < channels)[:, None] & (of < inputs)[None, :]
    first = tl.maximum(2 - row, 0)
    at = weight + (to.to(tl.int64) * 9)[:, None] * inputs + of[None, :]
    made = out + ((of * 4 + row).to(tl.int64) * 4)[:, None] * channels + to[None, :]
    both = inside & (row > 0) & (row < 3)
    left = tl.load(at + first * 3 * inputs, inside, 0.0).to(tl.float32)
    left += tl.load(at + (first + 1) * 3 * inputs, both, 0.0).to(tl.float32)
    middle = tl.load(at + (first * 3 + 1) * inputs, inside, 0.0).to(tl.float32)
    middle += tl.load(at + (first * 3 + 4) * inputs, both, 0.0).to(tl.float32)
    right = tl.load(at + (first * 3 + 2) * inputs, inside, 0.0).to(tl.float32)
    right += tl.load(at + (first * 3 + 5) * inputs, both, 0.0).to(tl.float32)
    there = tl.trans(inside)
    tl.store(made, tl.trans(right).to(out.dtype.element_ty), there)
    tl.store(made + channels, tl.trans(middle + right).to(out.dtype.element_ty), there)
    tl.store(made + 2 * channels, tl.trans(left + middle).to(out.dtype.element_ty), there)
    tl.store(made + 3 * channels, tl.trans(left).to(out.dtype.element_ty), there)


@triton.jit(do_not_specialize=["rows", "middle", "inner"])
def move_kernel(
    out, x, rows, columns, middle, inner, out_0, out_1, out_2, x_0, x_1, x_2, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rows of `columns` numbers that lie side by side, (outer, middle, inner) of them by strides of either side."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    last, rest = (row % inner).to(tl.int64), row // inner
    second, first = (rest % middle).to(tl.int64), (rest // middle).to(tl.int64)
    value = tl.load(x + (first * x_0 + second * x_1 + last * x_2)[:, None] + column[None, :], inside)
    tl.store(out + (first * out_0 + second * out_1 + last * out_2)[:, None] + column[None, :], value, inside)
