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
        x = 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    return x


@triton.jit
def _place(size, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """This program's numbers, and which of them there are. Indices in 64 bits would make divisions slow, so only if they must."""
    at = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)
    at = at * BLOCK + tl.arange(0, BLOCK)
    return at, at < size


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
def gated_kernel(
    out, x, bias, size, columns,
    HAS_BIAS: tl.constexpr, ACT: tl.constexpr, GATE_FIRST: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x (rows, 2 columns) -> ``a * act(b)`` of its halves, or ``act(a) * b``."""
    at, inside = _place(size, BLOCK, WIDE)
    row, column = at // columns, at % columns
    a = tl.load(x + row * (2 * columns) + column, inside).to(tl.float32)
    b = tl.load(x + row * (2 * columns) + columns + column, inside).to(tl.float32)
    if HAS_BIAS:
        a += tl.load(bias + column, inside).to(tl.float32)
        b += tl.load(bias + columns + column, inside).to(tl.float32)
    if GATE_FIRST:  # noqa: SIM108 (Triton decides this when it compiles)
        value = activate(a, ACT) * b
    else:
        value = a * activate(b, ACT)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@triton.jit
def _by_group(values, member):
    """Sums of (columns,) by group, (groups,); `member` (columns, groups) says what belongs to which."""
    return tl.sum(tl.where(member, values[:, None], 0.0), 0)


@triton.jit
def _by_column(values, member):
    """What each column's group has, of (groups,)."""
    return tl.sum(tl.where(member, values[None, :], 0.0), 1)


@triton.jit
def _rows(x, base, begin, end, channels, column, own, ROWS: tl.constexpr):
    """Columns of some positions, (rows, columns) float32; 0 outside."""
    row = begin + tl.arange(0, ROWS)
    inside = (row < end)[:, None] & own[None, :]
    return tl.load(x + base + row[:, None] * channels + column[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def group_norm_kernel(
    out, x, shift, apart, weight, bias, partial, counter, positions, channels, groups, chunk, splits, eps,
    GROUP: tl.constexpr, TAKEN: tl.constexpr, HAS_SHIFT: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr, SPLITS: tl.constexpr, ONCE: tl.constexpr,
    SUM: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """``act((x + shift - mean) / deviation * weight + bias)`` for x (n, positions, channels), in one launch or two.

    Each program takes TAKEN groups of GROUP channels in one chunk of the positions. With SUM it sums up differences from each
    channel's first number, so that nothing cancels; with WRITE it merges the chunks' moments (Chan, Golub and LeVeque, 1983)
    and writes its part. With both, those of the same groups wait for each other: a cooperative launch runs all at the same time.
    ONCE: a chunk has at most ROWS positions, and stays in registers.

    shift (n, channels) with rows so far `apart`, or anything without HAS_SHIFT; partial (n, splits, groups, 2) float32: mean and
    sum of squared differences; counter (n, programs across) int64: each only grows.
    """
    split, across, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane = tl.arange(0, COLUMNS)
    column = across * (TAKEN * GROUP) + lane
    own = (lane < TAKEN * GROUP) & (column < channels)
    local = tl.arange(0, GROUPS)
    which = across * TAKEN + local
    real = (local < TAKEN) & (which < groups)
    member = (lane // GROUP)[:, None] == local[None, :]
    base = image.to(tl.int64) * positions * channels
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    more = tl.zeros((COLUMNS,), tl.float32)
    if HAS_SHIFT:
        more = tl.load(shift + image * apart + column, own, 0.0).to(tl.float32)
    rows = (end - start).to(tl.float32)
    count = rows * GROUP
    if SUM:
        near = tl.load(x + base + start * channels + column, own, 0.0).to(tl.float32)
        if ONCE:
            value = _rows(x, base, start, end, channels, column, own, ROWS)
            value = tl.where((start + tl.arange(0, ROWS) < end)[:, None], value - near[None, :], 0.0)
            sums = tl.sum(value, 0)
            squares = tl.sum(value * value, 0)
        else:
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            square = tl.zeros((ROWS, COLUMNS), tl.float32)
            for begin in range(start, end, ROWS):
                part = _rows(x, base, begin, end, channels, column, own, ROWS)
                part = tl.where((begin + tl.arange(0, ROWS) < end)[:, None], part - near[None, :], 0.0)
                total += part
                square += part * part
            sums = tl.sum(total, 0)
            squares = tl.sum(square, 0)
        away = squares - sums * sums / rows
        mean = near + sums / rows + more
        whole = _by_group(tl.where(own, mean, 0.0), member) / GROUP
        off = tl.where(own, mean - _by_column(whole, member), 0.0)
        away = _by_group(tl.where(own, away, 0.0) + rows * off * off, member)
        mean = whole
        if SPLITS > 1:
            at = ((image * splits + split) * groups + which) * 2
            tl.store(partial + at, mean, real)
            tl.store(partial + at + 1, away, real)
    if SUM and WRITE and SPLITS > 1:
        tl.debug_barrier()
        own_counter = counter + image * tl.num_programs(1) + across
        everybody = tl.num_programs(0).to(tl.int64)
        ticket = tl.atomic_add(own_counter, 1, sem="acq_rel", scope="gpu")
        goal = (ticket // everybody + 1) * everybody
        here = ticket + 1
        while here < goal:
            here = tl.atomic_add(own_counter, 0, sem="acq_rel", scope="gpu")
        tl.debug_barrier()
    if not WRITE:
        return
    if SPLITS > 1:
        part = tl.arange(0, SPLITS)
        known = (part < splits)[:, None] & real[None, :]
        at = ((image * splits + part[:, None]) * groups + which[None, :]) * 2
        means = tl.load(partial + at, known, 0.0, cache_modifier=".cg")
        aways = tl.load(partial + at + 1, known, 0.0, cache_modifier=".cg")
        counts = ((tl.minimum((part + 1) * chunk, positions) - part * chunk) * GROUP).to(tl.float32)[:, None]
        counts = tl.where(known, counts, 0.0)
        count = (positions * GROUP).to(tl.float32)
        mean = tl.sum(means * counts, 0) / count
        off = tl.where(known, means - mean[None, :], 0.0)
        away = tl.sum(aways + counts * off * off, 0)
    factor = _by_column(1.0 / tl.sqrt(away / count + eps), member)
    if HAS_WEIGHT:
        factor *= tl.load(weight + column, own, 0.0).to(tl.float32)
    plus = (more - _by_column(mean, member)) * factor
    if HAS_WEIGHT:
        plus += tl.load(bias + column, own, 0.0).to(tl.float32)
    if ONCE and SUM:
        row = start + tl.arange(0, ROWS)
        result = activate(value * factor[None, :] + (near * factor + plus)[None, :], ACT)
        place = base + row[:, None] * channels + column[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), (row < end)[:, None] & own[None, :])
    else:
        for begin in range(start, end, ROWS):
            row = begin + tl.arange(0, ROWS)
            result = activate(_rows(x, base, begin, end, channels, column, own, ROWS) * factor[None, :] + plus[None, :], ACT)
            place = base + row[:, None] * channels + column[None, :]
            tl.store(out + place, result.to(out.dtype.element_ty), (row < end)[:, None] & own[None, :])


@triton.jit
def row_norm_kernel(
    out, x, weight, bias, rows, columns, eps,
    RMS: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Layer norm or RMS norm of some rows of dense (rows, columns)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    own = column < columns
    inside = (row < rows)[:, None] & own[None, :]
    at = row[:, None] * columns + column[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if not RMS:
        value = tl.where(inside, value - (tl.sum(value, 1) / columns)[:, None], 0.0)
    value = value / tl.sqrt(tl.sum(value * value, 1) / columns + eps)[:, None]
    if HAS_WEIGHT:
        value *= tl.load(weight + column, own, 0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        value += tl.load(bias + column, own, 0.0).to(tl.float32)[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), inside)
