"""Triton kernels of norms. All compute in float32 and round once."""

import triton
import triton.language as tl

from diffusers_oneflow.replay.cuda.kernels import activate


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


@triton.jit
def _write(out, value, begin, channels, column, inside, ROWS: tl.constexpr):
    """The other way."""
    row = begin + tl.arange(0, ROWS)
    tl.store(out + row[:, None] * channels + column[None, :], value.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["splits"])
def moments_kernel(
    partial, x, other, joined, first, positions, channels, chunk, splits,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ONCE: tl.constexpr, EARLY: tl.constexpr, JOINS: tl.constexpr,
):  # fmt: skip
    """Mean, and sum of squared differences from it, of each channel in each chunk of the positions of x (n, positions, channels).

    They are summed up as differences from the channel's first number, so that nothing cancels. ONCE: a chunk has at most ROWS
    positions. EARLY: the next kernel may start, and wait for this one's results by itself.

    JOINS: the first channels are those of x (n, positions, first), a multiple of COLUMNS, the others those of `other`; all are
    written to `joined` (n, positions, channels) too.

    partial (n, splits, 2, channels) float32.
    """
    split, image = tl.program_id(0), tl.program_id(2)
    place = tl.program_id(1) * COLUMNS
    lane = tl.arange(0, COLUMNS)
    column = place + lane
    own = column < channels
    width = channels
    if JOINS:
        joined += image.to(tl.int64) * positions * channels
        width = first
        if place >= first:
            x = other
            place -= first
            width = channels - first
    x += image.to(tl.int64) * positions * width + place
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    near = tl.load(x + start * width + lane, own, 0.0).to(tl.float32)
    if ONCE:
        value, inside = _rows(x, start, end, width, lane, own, ROWS)
        if JOINS:
            _write(joined, value, start, channels, column, inside, ROWS)
        value = tl.where(inside, value - near[None, :], 0.0)
        total = tl.sum(value, 0)
        square = tl.sum(value * value, 0)
    else:
        totals = tl.zeros((ROWS, COLUMNS), tl.float32)
        squares = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin in range(start, end, ROWS):
            value, inside = _rows(x, begin, end, width, lane, own, ROWS)
            if JOINS:
                _write(joined, value, begin, channels, column, inside, ROWS)
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


@triton.jit(do_not_specialize=["positions", "shifted", "splits", "size"])
def merge_kernel(
    ends, shift, apart, weight, bias, partial, positions, channels, chunk, eps, shifted, splits, size,
    HAS_WEIGHT: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """What the numbers of a group norm, of groups of `size` channels, are multiplied by, and what is added then.

    Each program merges the moments that `moments_kernel` left in `partial` for one group of one image: first a channel's chunks,
    then the channels (Chan, Golub and LeVeque, 1983). ends (n, 2, channels) float32.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane, part = tl.arange(0, COLUMNS), tl.arange(0, SPLITS)
    column, own = group * size + lane, lane < size
    known = (part < splits)[:, None] & own[None, :]
    at = partial + (image * splits + part[:, None]) * 2 * channels + column[None, :]
    means, aways = tl.load(at, known, 0.0), tl.load(at + channels, known, 0.0)
    every = positions.to(tl.float32)
    counts = (tl.minimum((part + 1) * chunk, positions) - part * chunk).to(tl.float32)[:, None]
    counts = tl.where(known, counts, 0.0)
    mean = tl.sum(means * counts, 0) / every
    off = tl.where(known, means - mean[None, :], 0.0)
    away = tl.sum(aways + counts * off * off, 0)
    more = tl.load(shift + image * apart + column, own & (shifted != 0), 0.0).to(tl.float32)
    mean += more
    middle = tl.sum(tl.where(own, mean, 0.0), 0) / size
    aside = tl.where(own, mean - middle, 0.0)
    spread = tl.sum(tl.where(own, away, 0.0) + every * aside * aside, 0)
    factor = 1.0 / tl.sqrt(spread / (every * size) + eps)
    if HAS_WEIGHT:
        factor *= tl.load(weight + column, own, 0.0).to(tl.float32)
    plus = (more - middle) * factor
    if HAS_WEIGHT:
        plus += tl.load(bias + column, own, 0.0).to(tl.float32)
    at = ends + image * 2 * channels + column
    tl.store(at, factor + tl.zeros((COLUMNS,), tl.float32), own)
    tl.store(at + channels, plus, own)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit(do_not_specialize=["active"])
def apply_kernel(
    out, x, ends, positions, channels, active,
    ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EARLY: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    """``act(x * factor + plus)`` with the `ends` of `merge_kernel`; x (n, positions, channels). Without `active` no activation.

    EARLY: it starts before the others are done, and waits for them. JOINED: the first of them wrote x, which else was there.
    """
    image = tl.program_id(2).to(tl.int64)
    place = image * positions * channels
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = column < channels
    begin = tl.program_id(0) * ROWS
    if EARLY and JOINED:
        tl.extra.cuda.gdc_wait()
    value, inside = _rows(x + place, begin, positions, channels, column, own, ROWS)
    if EARLY and not JOINED:
        tl.extra.cuda.gdc_wait()
    at = ends + image * 2 * channels + column
    value = value * tl.load(at, own, 0.0)[None, :] + tl.load(at + channels, own, 0.0)[None, :]
    value = tl.where(active != 0, activate(value, ACT), value)
    _write(out + place, value, begin, channels, column, inside, ROWS)


@triton.jit
def _numbers(place, inside, MASKED: tl.constexpr):
    """What lies there, in float32; where it is masked, 0 outside."""
    value = tl.load(place, inside, 0.0) if MASKED else tl.load(place)
    return value.to(tl.float32)


@triton.jit
def _put(place, value, inside, MASKED: tl.constexpr):
    """The other way."""
    if MASKED:
        tl.store(place, value.to(place.dtype.element_ty), inside)
    else:
        tl.store(place, value.to(place.dtype.element_ty))


@triton.jit
def _normed(
    out, x, plus, residual, gate, at, begin, gates, column, own, inside,
    SUMS: tl.constexpr, HAS_PLUS: tl.constexpr, GATED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Some columns of what is normed, which is written if it is a sum."""
    value = _numbers(x + begin[:, None] + column[None, :], inside, MASKED)
    if SUMS:
        if GATED:
            value *= _numbers(gate + gates[:, None] + column[None, :], inside, MASKED)
        value += _numbers(residual + at[:, None] + column[None, :], inside, MASKED)
        if HAS_PLUS:
            value += _numbers(plus + column, own, MASKED)[None, :]
        _put(out + at[:, None] + column[None, :], value, inside, MASKED)
    return value


@triton.jit
def _write_norm(
    out, value, weight, bias, factor, addend, at, factors, addends, one, column, own, inside,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr, TURNS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Some columns of the norm, and what comes after it."""
    if HAS_WEIGHT:
        value *= _numbers(weight + column, own, MASKED)[None, :]
    if HAS_BIAS:
        value += _numbers(bias + column, own, MASKED)[None, :]
    other = value
    if TURNS:
        a, b = tl.split(tl.reshape(value, (ROWS, BLOCK // 2, 2)))
        other = tl.reshape(tl.join(-b, a), (ROWS, BLOCK))
    if HAS_FACTOR:
        value *= _numbers(factor + factors[:, None] + column[None, :], inside, MASKED) + one
    if HAS_ADDEND:
        addition = _numbers(addend + addends[:, None] + column[None, :], inside, MASKED)
        if TURNS:
            addition *= other
        value += addition
    _put(out + at[:, None] + column[None, :], value, inside, MASKED)


@triton.jit
def row_norm_kernel(
    out, x, plus, residual, gate, weight, bias, factor, addend,
    rows, columns, apart, eps, span, jump, step, per, period, gates, factors, addends, one, inner, gap,
    RMS: tl.constexpr, SUMS: tl.constexpr, HAS_PLUS: tl.constexpr, GATED: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr, TURNS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr, REST_MASKED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Layer norm or RMS norm of `rows` rows of `columns` numbers; then ``* (factor + one) + addend``.

    x: rows as `strides.Rows` has them. gate, factor, addend: as `strides.Spread` has them, with rows `gates`, `factors` and
    `addends` apart.
    SUMS: of ``x + plus + residual``, or with a gate of ``x * gate + residual``; plus (columns,), residual dense. The sum is the
    first of two dense results then, which lie so far `apart`.
    TURNS: what is added is the addend times the pairs of the norm turned, as `rotary` has it.
    BLOCK, REST: the columns are the first BLOCK, and of REST after them, if that is not 0, those that there are. What is not
    MASKED, or REST_MASKED, is all inside: 640 columns in a block of 1024 would take 1.6 times the instructions.
    EARLY: the next kernel may start, and wait for this one's results by itself: quack's products do.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    own, there = column < columns, row < rows
    inside = there[:, None] & own[None, :]
    begin = (row // span).to(tl.int64) * jump + (row % span).to(tl.int64) * step
    at = (row + (row // inner) * gap).to(tl.int64) * columns
    of = (row // per % period).to(tl.int64)
    # From each row's first number on: constant rows stay without any difference, and far from 0 none is lost.
    near = _numbers(x + begin, there, MASKED)
    if SUMS:
        if GATED:
            near *= _numbers(gate + of * gates, there, MASKED)
        near += _numbers(residual + row.to(tl.int64) * columns, there, MASKED)
        if HAS_PLUS:
            near += tl.load(plus).to(tl.float32)
    value = _normed(out, x, plus, residual, gate, at, begin, of * gates, column, own, inside, SUMS, HAS_PLUS, GATED, MASKED)
    if not RMS:
        value -= near[:, None]
        value = tl.where(inside, value, 0.0) if MASKED else value
    total = tl.sum(value, 1)
    if REST:
        more = BLOCK + tl.arange(0, REST)
        own_more = more < columns
        inside_more = there[:, None] & own_more[None, :]
        rest = _normed(
            out, x, plus, residual, gate, at, begin, of * gates, more, own_more, inside_more, SUMS, HAS_PLUS, GATED, REST_MASKED
        )  # fmt: skip
        if not RMS:
            rest -= near[:, None]
            rest = tl.where(inside_more, rest, 0.0) if REST_MASKED else rest
        total += tl.sum(rest, 1)
    if not RMS:
        mean = (total / columns)[:, None]
        value -= mean
        value = tl.where(inside, value, 0.0) if MASKED else value
    square = tl.sum(value * value, 1)
    if REST:
        if not RMS:
            rest -= mean
            rest = tl.where(inside_more, rest, 0.0) if REST_MASKED else rest
        square += tl.sum(rest * rest, 1)
    # Once for each row: a division takes several instructions.
    scale = (1.0 / tl.sqrt(square / columns + eps))[:, None]
    if SUMS:
        out += apart
    _write_norm(
        out, value * scale, weight, bias, factor, addend, at, of * factors, of * addends, one, column, own, inside,
        HAS_WEIGHT, HAS_BIAS, HAS_FACTOR, HAS_ADDEND, TURNS, ROWS, BLOCK, MASKED,
    )  # fmt: skip
    if REST:
        _write_norm(
            out, rest * scale, weight, bias, factor, addend, at, of * factors, of * addends, one, more, own_more, inside_more,
            HAS_WEIGHT, HAS_BIAS, HAS_FACTOR, HAS_ADDEND, TURNS, ROWS, REST, REST_MASKED,
        )  # fmt: skip
