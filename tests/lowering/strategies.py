"""Tensors of many shapes, strides and dtypes."""

import torch
from hypothesis import strategies as st

from .harness import Weight

FLOAT32 = st.just(torch.float32)
FLOAT = st.sampled_from((torch.float32, torch.float64))
INDEX = st.sampled_from((torch.int64, torch.int32))
NUMBER = st.sampled_from((torch.float32, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8))
ANY = st.sampled_from((torch.float32, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool))
BOOL = st.just(torch.bool)

sizes = st.integers(1, 5)
layouts = st.sampled_from(["dense", "offset", "transposed", "sliced", "expanded", "channels_last"])
seeds = st.integers(0, 999)
scalars = st.sampled_from([0, 1, -1, 3, 0.5, -2.25, 1.0, True])


def shapes(low: int = 0, high: int = 4):
    """Shapes without empty dimensions."""
    return st.lists(sizes, min_size=low, max_size=high).map(tuple)


ANY_SHAPE = shapes()


@st.composite
def tensors(draw, shape=ANY_SHAPE, dtype=FLOAT32, low: float = -4, high: float = 4):
    """A tensor with values from `low` to `high`, dense or not: transposed, sliced, expanded, offset, channels_last.

    Args:
        shape, dtype: strategies, or the value itself.
    """
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else tuple(shape)
    dtype = draw(dtype) if isinstance(dtype, st.SearchStrategy) else dtype
    layout = draw(layouts) if shape else "dense"
    generator = torch.Generator().manual_seed(draw(seeds))

    def values(sizes):
        if dtype == torch.bool:
            return torch.rand(sizes, generator=generator) < 0.5
        if dtype.is_floating_point:
            return torch.empty(sizes, dtype=dtype).uniform_(low, high, generator=generator)
        lowest = max(int(low), torch.iinfo(dtype).min)
        return torch.randint(lowest, int(high) + 1, sizes, generator=generator, dtype=dtype)

    if layout == "offset":
        return values((3 + torch.Size(shape).numel(),))[3:].view(shape)
    if layout == "transposed":
        return values(shape[::-1]).permute(*range(len(shape))[::-1])
    if layout == "sliced":
        return values([2 * s + 1 for s in shape])[(slice(1, None, 2),) * len(shape)]
    if layout == "expanded":
        dim = draw(st.integers(0, len(shape) - 1))
        return values([1 if d == dim else s for d, s in enumerate(shape)]).expand(shape)
    if layout == "channels_last" and len(shape) > 2:
        return values((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
    return values(shape)


@st.composite
def weights(draw, shape, dtype=FLOAT32):
    """A `Weight`: dense, or a permutation of a dense tensor, which is all that a graph keeps."""
    tensor = draw(tensors(shape, dtype))
    order = sorted(range(tensor.ndim), key=lambda d: (-tensor.stride(d), d))
    return Weight(tensor if tensor.permute(order).is_contiguous() else tensor.contiguous())


@st.composite
def operands(draw, count=2, dtype=ANY, **options):
    """Tensors that broadcast against each other, each of a dtype of its own."""
    shape = draw(ANY_SHAPE)
    made = []
    for _ in range(count):
        kept = [s if draw(st.integers(0, 3)) else 1 for s in shape]
        kept = kept[draw(st.integers(0, len(kept))) :] if draw(st.booleans()) else kept
        made.append(draw(tensors(kept, dtype, **options)))
    if {torch.int8, torch.uint8} <= {t.dtype for t in made}:
        # Their common dtype is int16, which OneFlow has not.
        made = [t.to(torch.int32) if t.dtype == torch.int8 else t for t in made]
    return made
