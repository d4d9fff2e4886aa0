"""Puts ops of the pack into the graph that OneFlow is building."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import oneflow as flow
import torch

from . import _pack

# Of OneFlow's data_type.proto, and of math.h's Type.
_DTYPES = {
    torch.float32: 2, torch.float64: 3, torch.int8: 4, torch.int32: 5, torch.int64: 6, torch.uint8: 7, torch.float16: 9,
    torch.bfloat16: 11, torch.bool: 12,
}  # fmt: skip
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Of math.h's Act.
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "quick_gelu": 4, "relu": 5, "sigmoid": 6, "tanh": 7}


# The kind of every op that is added, in order; `graph` empties it after each node of the program.
made: list[str] = []


def node(kind: str, inputs: Sequence[Any], shape: Sequence[int], dtype: torch.dtype, *params: Any) -> flow.Tensor:
    """Add an op and return its output, a OneFlow tensor.

    Args:
        kind: ``"dfo_linear"``; the kernels and their parameters are in csrc/heavy.cpp and csrc/light.cpp.
        inputs: OneFlow tensors, at least one.
        params: ints, bools, floats, and lists of ints (their length goes first), as the kernel reads them.

    Raises:
        RuntimeError: OneFlow refuses the op.
    """
    values: list[int] = []
    for value in params:
        if isinstance(value, (list, tuple, torch.Size)):
            values.append(len(value))
            values.extend(value)
        elif isinstance(value, float):
            values.append(struct.unpack("q", struct.pack("d", value))[0])
        else:
            values.append(int(value))
    tensors = flow._oneflow_internal.TensorTuple()
    for tensor in inputs:
        tensors.append(tensor)
    made.append(kind)
    _pack.add_node(kind, tensors, tuple(shape), _DTYPES[dtype], values)
    return tensors[len(inputs)]


def dense_strides(shape: Sequence[int]) -> list[int]:
    """The strides, in elements, of a dense tensor."""
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def broadcast_strides(given: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The strides by which a dense tensor of shape `given` is read as one of `shape`: 0 where it is broadcast."""
    given = [1] * (len(shape) - len(given)) + list(given)
    return [0 if size == 1 else stride for size, stride in zip(given, dense_strides(given))]
