"""The Triton kernel of attention to few keys."""

import triton
import triton.language as tl


@triton.jit
def _part(start, matrix, step, head, keys, WIDTH: tl.constexpr, COUNT: tl.constexpr, SIDE: tl.constexpr):
    """`COUNT` rows of one head of q, k or v, which has `keys` of them, from `start` on; 0 where there are none."""
    key, column = start + tl.arange(0, COUNT), tl.arange(0, SIDE)
    inside = (key < keys)[:, None] & (column < WIDTH)[None, :]
    return tl.load(matrix + key.to(tl.int64)[:, None] * step + (head * WIDTH + column)[None, :], inside, 0.0)


@triton.jit
def _scores(start, query, matrix, step, head, keys, scale, WIDTH: tl.constexpr, COUNT: tl.constexpr, SIDE: tl.constexpr):
    """Logarithms (to 2) of what `COUNT` keys weigh, (rows, keys)."""
    product = tl.dot(query, tl.trans(_part(start, matrix, step, head, keys, WIDTH, COUNT, SIDE)))
    return tl.where((start + tl.arange(0, COUNT) < keys)[None, :], product * scale, float("-inf"))


@triton.jit
def short_attention_kernel(
    out, q, k, v, rows, keys, scale, q_image, q_step, k_image, k_step, v_image, v_step, out_image, out_step,
    WIDTH: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attention of (images, rows, heads * WIDTH) to k and v (images, keys, heads * WIDTH); sums and exponents in float32.

    Strides: of images and rows; heads lie side by side. FIRST, REST: keys that are multiplied at once, REST may be 0.
    EARLY: the next kernel may start, and wait for this one's results by itself.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    q, k, v, out = q + image * q_image, k + image * k_image, v + image * v_image, out + image * out_image
    start = tl.program_id(0) * ROWS
    query = _part(start, q, q_step, head, rows, WIDTH, ROWS, SIDE)
    first = _scores(0, query, k, k_step, head, keys, scale, WIDTH, FIRST, SIDE)
    largest = tl.max(first, 1)
    if REST > 0:
        rest = _scores(FIRST, query, k, k_step, head, keys, scale, WIDTH, REST, SIDE)
        largest = tl.maximum(largest, tl.max(rest, 1))
    first = tl.exp2(first - largest[:, None])
    total = tl.sum(first, 1)
    made = tl.dot(first.to(v.dtype.element_ty), _part(0, v, v_step, head, keys, WIDTH, FIRST, SIDE))
    if REST > 0:
        rest = tl.exp2(rest - largest[:, None])
        total += tl.sum(rest, 1)
        made = tl.dot(rest.to(v.dtype.element_ty), _part(FIRST, v, v_step, head, keys, WIDTH, REST, SIDE), made)
    made = made / total[:, None]
    row, column = start + tl.arange(0, ROWS), tl.arange(0, SIDE)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    place = row.to(tl.int64)[:, None] * out_step + (head * WIDTH + column)[None, :]
    tl.store(out + place, made.to(out.dtype.element_ty), inside)
