"""Linear layers that read the same tensor as one product, where their weights lie one after the other (`replay.layout`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...capture import op_name
from ..lowering import Lowered
from ..values import Ref

_LINEAR = ("oneflow.linear.default", "aten.linear.default")
# An activation, a residual and a gate that are not there.
PLAIN = ("none", None, "none")
_VIEWS = ("view", "reshape", "_unsafe_view", "unsqueeze", "permute", "transpose", "expand", "unflatten", "flatten")
# Their kernels read rows that do not follow each other; others would have to copy them.
_TAKE_STRIDES = ("oneflow.attention.default", "oneflow.chain.default", "aten.rms_norm.default", "aten.cat.default")


@dataclass
class _Layer:
    node: torch.fx.Node
    weight: torch.Tensor
    bias: torch.Tensor | None


def find(lowered: Lowered, node: torch.fx.Node, product: Callable[..., Ref]) -> Ref | None:
    """The result of `node` as a part of a merged product, which is made for the first of them; None where it stays alone.

    Args:
        product: adds its step, `products.product`.
    """
    if node in lowered.merged:
        return lowered.merged.pop(node)
    layers = _run(lowered, node)
    if len(layers) < 2:
        return None
    first = layers[0]
    k, sizes = first.weight.shape[1], [layer.weight.shape[0] for layer in layers]
    width = sum(sizes)
    weight = first.weight.as_strided((width, k), (k, 1))
    bias = None if first.bias is None else first.bias.as_strided((width,), (1,))
    x = lowered.value(node.args[0])
    shape = (*x.shape[:-1], width)
    of_bias = None if bias is None else Ref(bias, bias.to("meta"))
    whole = product(lowered, node, x, Ref(weight, weight.to("meta")), of_bias, "none", None, "none", True, shape)
    start = 0
    for layer, size in zip(layers, sizes):
        lowered.merged[layer.node] = whole.through(lambda t, start=start, size=size: t.narrow(-1, start, size))  # type: ignore[misc]
        start += size
    return lowered.merged.pop(node)


def _run(lowered: Lowered, node: torch.fx.Node) -> list[_Layer]:
    """`node` and those beside it in memory, in the order of their weights."""
    source = node.args[0]
    if not isinstance(source, torch.fx.Node):
        return []
    found = [layer for user in source.users if (layer := _layer(lowered, user, source)) is not None]
    found.sort(key=lambda layer: layer.weight.data_ptr())
    position = next((i for i, layer in enumerate(found) if layer.node is node), None)
    if position is None:
        return []
    start = end = position
    while start > 0 and _follows(found[start - 1], found[start]):
        start -= 1
    while end + 1 < len(found) and _follows(found[end], found[end + 1]):
        end += 1
    return found[start : end + 1]


def _layer(lowered: Lowered, node: torch.fx.Node, source: torch.fx.Node) -> _Layer | None:
    if op_name(node) not in _LINEAR or node.args[0] is not source or tuple(node.args[3:]) not in ((), PLAIN) or node.kwargs:
        return None
    weight, bias = (lowered.weight(a) for a in (*node.args[1:3], None)[:2])
    given = len(node.args) > 2 and node.args[2] is not None
    if weight is None or not weight.is_contiguous() or weight.dtype != node.meta["val"].dtype or (given and bias is None):
        return None
    return _Layer(node, weight, bias) if all(map(_takes_strides, node.users)) else None


def _takes_strides(node: torch.fx.Node) -> bool:
    if op_name(node).split(".")[1:2] and op_name(node).split(".")[1] in _VIEWS:
        return all(map(_takes_strides, node.users))
    return op_name(node) in _TAKE_STRIDES


def _follows(one: _Layer, other: _Layer) -> bool:
    pairs = [(one.weight, other.weight)]
    if one.bias is not None and other.bias is not None:
        pairs.append((one.bias, other.bias))
    alike = one.weight.shape[1] == other.weight.shape[1] and (one.bias is None) == (other.bias is None)
    return alike and all(_adjacent(a, b) for a, b in pairs)


def _adjacent(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return same and a.dtype == b.dtype and a.data_ptr() + math.prod(a.shape) * a.itemsize == b.data_ptr()
