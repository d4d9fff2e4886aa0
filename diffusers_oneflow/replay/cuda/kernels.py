"""Triton kernels: the end of a product, gates, images made larger, and moves. All compute in float32 and round once."""

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
