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
    elif ACT == "gelu_tanh":
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACT == "quick_gelu":
        x = x / (1.0 + tl.exp(-1.702 * x))
    elif ACT == "relu":
        x = tl.maximum(x, 0.0)
    elif ACT == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    elif ACT == "tanh":
        x = 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    return x


@triton.jit
def finish_kernel(
    out, x, bias, residual, size, columns,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACT: tl.constexpr, ACT_FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out = act(x + bias + residual)``, or ``act(x + bias) + residual``; dense (rows, columns), bias by column."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
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
    out, x, bias, size, columns, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, GATE_FIRST: tl.constexpr, BLOCK: tl.constexpr
):
    """x (rows, 2 columns) -> ``a * act(b)`` of its halves, or ``act(a) * b``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    row, column = at // columns, at % columns
    a = tl.load(x + row * 2 * columns + column, inside).to(tl.float32)
    b = tl.load(x + row * 2 * columns + columns + column, inside).to(tl.float32)
    if HAS_BIAS:
        a += tl.load(bias + column, inside).to(tl.float32)
        b += tl.load(bias + columns + column, inside).to(tl.float32)
    if GATE_FIRST:  # noqa: SIM108 (Triton decides this when it compiles)
        value = activate(a, ACT) * b
    else:
        value = a * activate(b, ACT)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


@triton.jit
def channel_stats_kernel(x, stats, positions, channels, chunk, splits, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean and sum of squared differences of each channel in one chunk of positions: stats (n, splits, channels, 2).

    x (n, positions, channels). Differences from the chunk's first row are summed up: nothing cancels.
    """
    image, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = column < channels
    base = x + image.to(tl.int64) * positions * channels
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    near = tl.load(base + start * channels + column, own, 0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    square = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(start, end, ROWS):
        row = begin + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & own[None, :]
        value = tl.load(base + row[:, None] * channels + column[None, :], inside, 0.0).to(tl.float32)
        difference = tl.where(inside, value - near[None, :], 0.0)
        total += difference
        square += difference * difference
    count = (end - start).to(tl.float32)
    sums = tl.sum(total, 0)
    at = ((image * splits + split) * channels + column) * 2
    tl.store(stats + at, near + sums / count, own)
    tl.store(stats + at + 1, tl.sum(square, 0) - sums * sums / count, own)


@triton.jit
def group_moments_kernel(
    moments, stats, positions, channels, groups, group, chunk, splits, eps, SPLITS: tl.constexpr, WIDTH: tl.constexpr
):
    """Mean and 1 / deviation of one group of the channels' chunks (Chan, Golub and LeVeque, 1983): moments (n, groups, 2)."""
    image, which = tl.program_id(0) // groups, tl.program_id(0) % groups
    split, column = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    known = (split < splits)[:, None] & (column < group)[None, :]
    at = ((image * splits + split[:, None]) * channels + which * group + column[None, :]) * 2
    means = tl.load(stats + at, known, 0.0)
    squares = tl.load(stats + at + 1, known, 0.0)
    counts = (tl.minimum((split + 1) * chunk, positions) - split * chunk).to(tl.float32)[:, None]
    counts = tl.where(known, counts, 0.0)
    total = (positions * group).to(tl.float32)
    mean = tl.sum(tl.sum(means * counts, 1), 0) / total
    away = means - mean
    variance = tl.sum(tl.sum(squares + counts * away * away, 1), 0) / total
    tl.store(moments + tl.program_id(0) * 2, mean)
    tl.store(moments + tl.program_id(0) * 2 + 1, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def group_apply_kernel(
    out, x, moments, weight, bias, positions, channels, groups, group, chunk, splits,
    HAS_WEIGHT: tl.constexpr, ACT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``act((x - mean) / deviation * weight + bias)`` of one chunk of positions."""
    image, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    own = column < channels
    at = (image * groups + column // group) * 2
    mean = tl.load(moments + at, own, 0.0)
    gain = tl.load(moments + at + 1, own, 0.0)
    if HAS_WEIGHT:
        gain = gain * tl.load(weight + column, own, 0.0).to(tl.float32)
    shift = -mean * gain
    if HAS_WEIGHT:
        shift += tl.load(bias + column, own, 0.0).to(tl.float32)
    base = image.to(tl.int64) * positions * channels
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    for begin in range(start, end, ROWS):
        row = begin + tl.arange(0, ROWS)
        inside = (row < end)[:, None] & own[None, :]
        place = row[:, None] * channels + column[None, :]
        value = tl.load(x + base + place, inside, 0.0).to(tl.float32) * gain[None, :] + shift[None, :]
        tl.store(out + base + place, activate(value, ACT).to(out.dtype.element_ty), inside)


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
