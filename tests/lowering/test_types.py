"""Dtypes of both frameworks, and promotion."""

import itertools

import pytest
import torch

from diffusers_oneflow import engine

flow = engine.load()

from diffusers_oneflow.lowering import types  # noqa: E402
from diffusers_oneflow.lowering.registry import Refused  # noqa: E402

SMALL = (torch.int8, torch.uint8)  # whose common dtype OneFlow has not
OPERANDS = [
    *(torch.ones(shape, dtype=dtype) for dtype in types.TO_FLOW if dtype not in SMALL for shape in ((), (2,))),
    True, 2, 0.5,
]  # fmt: skip


def lazy(value):
    """The same operand for OneFlow."""
    return flow.ones(tuple(value.shape), dtype=types.TO_FLOW[value.dtype]) if isinstance(value, torch.Tensor) else value


def test_promotion_is_torchs():
    for a, b in itertools.product(OPERANDS, repeat=2):
        if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
            assert types.promoted(lazy(a), lazy(b)) == torch.result_type(a, b), (a, b)


def test_every_dtype_goes_both_ways():
    for dtype, other in types.TO_FLOW.items():
        assert types.flow_dtype(dtype) == other
        assert types.torch_dtype(flow.ones(1, dtype=other)) == dtype


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int16, torch.float8_e4m3fn])
def test_a_dtype_that_oneflow_has_not_is_refused(dtype):
    with pytest.raises(Refused, match=str(dtype)):
        types.flow_dtype(dtype)


def test_cast_to_the_same_dtype_is_the_tensor_itself():
    x = flow.ones(2)
    assert types.cast(x, torch.float32) is x
    assert types.cast(x, torch.int64).dtype == flow.int64


def test_floating():
    assert types.torch_dtype(types.floating(flow.ones(2, dtype=flow.int32))) == torch.float32
    assert types.torch_dtype(types.floating(flow.ones(2, dtype=flow.float64))) == torch.float64


def test_scalars_that_fit():
    assert types.fitting(255, torch.uint8) == 255
    assert types.fitting(1e300, torch.float32) == 1e300
    for scalar, dtype in ((256, torch.uint8), (-1, torch.uint8), (2**31, torch.int32)):
        with pytest.raises(Refused, match="not within"):
            types.fitting(scalar, dtype)
