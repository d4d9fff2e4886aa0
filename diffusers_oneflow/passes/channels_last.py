"""Images with their channels last, from end to end."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..capture import Program, op_name
from . import native_ops
from .base import Rewrite, args_of, emit, is_native, value
from .simplify_views import dims_of

_aten = torch.ops.aten
# Elementwise: the layout of what they read is that of what they make.
_ELEMENTWISE = {
    f"aten.{name}"
    for name in (
        "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "add.Scalar", "mul.Scalar", "rsub.Scalar", "silu.default",
        "gelu.default", "relu.default", "sigmoid.default", "tanh.default", "neg.default", "exp.default", "clamp.default",
        "clamp_min.default", "clamp_max.default", "pow.Tensor_Scalar", "sqrt.default", "rsqrt.default", "abs.default",
        "leaky_relu.default", "elu.default", "softplus.default", "mish.default", "hardtanh.default", "maximum.default",
        "minimum.default", "to.dtype", "_to_copy.default", "clone.default", "dropout.default", "square.default", "where.self",
    )
}  # fmt: skip

# The block of a filter that the pack's float32 kernel works on, kDepth of panels.h, has at least so many numbers for each
# column. It has to hold one channel.
MOST_TAPS = 144
# The arguments of aten.conv2d and aten.conv3d, and their defaults.
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), (None, None, None, 1, 0, 1, 1)


class ChannelsLast(Rewrite):
    """Convolutions, and all that stands between them, work on (n, h, w, c) instead of (n, c, h, w).

    oneDNN is fastest on that layout, group norm and attention find their rows in one piece, and the permutations
    around every attention block of a UNet vanish. Every image keeps a permutation back for those of its readers that
    are not rewritten; without any it is dead code. The same holds for (b, c, l) and (b, l, c).
    """

    def run(self, program: Program) -> Rewrite:
        # Node -> the node with the same numbers, channels last.
        self._last: dict[torch.fx.Node, torch.fx.Node] = {}
        for node in list(program.graph.nodes):
            if node.op != "call_function":
                continue
            name = op_name(node)
            handler: Any = self._elementwise if name in _ELEMENTWISE else _HANDLERS.get(name)
            if handler is not None:
                with program.graph.inserting_before(node):
                    handler(self, program, node) if name not in _ELEMENTWISE else handler(program, node)
        return self

    def _made(self, program: Program, node: torch.fx.Node, new: torch.fx.Node) -> None:
        """`new` is `node` with its channels last."""
        ndim = value(node).ndim
        back = emit(program, _aten.permute.default, (new, [0, ndim - 1, *range(1, ndim - 1)]), value(node).shape,
                    value(node).dtype, node)  # fmt: skip
        self._last[back] = new
        self.replace(program, node, back)

    def _moved(self, program: Program, x: torch.fx.Node) -> torch.fx.Node:
        """`x` with its channels last; an image of unknown layout is permuted."""
        if x not in self._last:
            shape = value(x).shape
            dims = [0, *range(2, len(shape)), 1]
            self._last[x] = emit(program, _aten.permute.default, (x, dims), [shape[d] for d in dims], value(x).dtype, x)
        return self._last[x]

    def _shape(self, node: torch.fx.Node) -> tuple[int, ...]:
        """The shape of a node with its channels last."""
        shape = value(node).shape
        return (shape[0], *shape[2:], shape[1])

    def _conv2d(self, program: Program, node: torch.fx.Node) -> None:
        if not is_native(node):
            return
        x, weight, bias, stride, padding, dilation, groups = arguments(node, *_CONVOLUTION)
        stored = _is_stored(weight, bias)
        if value(x).ndim != 4 or not stored or isinstance(padding, str):
            self.why_not(node, "its weight is computed, it has no batch, or its padding is named")
            return
        if value(x).dtype == torch.float32 and groups == 1 and math.prod(value(weight).shape[2:]) > MOST_TAPS:
            self.why_not(node, f"its filter has more than {MOST_TAPS} taps")
            return
        stride, padding, dilation = (_each(v, 2) for v in (stride, padding, dilation))
        args = (self._moved(program, x), weight, bias, stride, padding, dilation, groups)
        self._made(program, node, emit(program, native_ops.conv2d, args, self._shape(node), value(node).dtype, node))

    def _conv3d(self, program: Program, node: torch.fx.Node) -> None:
        """Frames that a window holds stand side by side in the channels: then it is a convolution of images.

        A dense filter (oc, c, kt, kh, kw) is, as it lies in memory, one of images: (oc, c * kt, kh, kw).
        """
        if not is_native(node):
            return
        x, weight, bias, stride, padding, dilation, groups = arguments(node, *_CONVOLUTION)
        stored = _is_stored(weight, bias)
        stride, padding, dilation = (_each(v, 3) for v in (stride, padding, dilation))
        kt, kh, kw = value(weight).shape[2:]
        if value(x).ndim != 5 or not stored or not value(weight).is_contiguous():
            self.why_not(node, "its weight is computed or not dense, or it has no batch")
        elif value(x).dtype == torch.float32 and groups == 1 and kh * kw > MOST_TAPS:
            self.why_not(node, f"its filter has more than {MOST_TAPS} taps in an image")
        elif kt > 1 and dilation[0] != 1:
            self.why_not(node, "its window leaves out frames")
        else:
            moved = self._windows(program, self._moved(program, x), kt, stride[0], padding[0])
            _, _, oh, ow, oc = self._shape(node)
            args = (moved, weight, bias, stride[1:], padding[1:], dilation[1:], groups)
            frames = value(moved).shape[0]
            made = emit(program, native_ops.conv2d, args, (frames, oh, ow, oc), value(node).dtype, node)
            shape = self._shape(node)
            self._made(program, node, emit(program, _aten.view.default, (made, list(shape)), shape, value(node).dtype, node))

    @staticmethod
    def _windows(program: Program, x: torch.fx.Node, kt: int, step: int, padding: int) -> torch.fx.Node:
        """(n, t, h, w, c) -> (n * windows, h, w, c * kt)."""
        n, t, h, w, c = value(x).shape
        dtype = value(x).dtype
        if padding:
            t += 2 * padding
            pad = [0, 0] * 3 + [padding] * 2
            x = emit(program, _aten.constant_pad_nd.default, (x, pad), (n, t, h, w, c), dtype, x)
        if kt > 1 or step > 1:
            t = (t - kt) // step + 1
            x = emit(program, _aten.unfold.default, (x, 1, kt, step), (n, t, h, w, c, kt), dtype, x)
        shape = (n * t, h, w, c * kt)
        return emit(program, _aten.view.default, (x, list(shape)), shape, dtype, x)

    def _group_norm(self, program: Program, node: torch.fx.Node) -> None:
        x, groups, weight, bias, eps = arguments(
            node, ("input", "num_groups", "weight", "bias", "eps"), (None, None, None, None, 1e-5)
        )
        if x not in self._last:
            return
        args = (self._last[x], groups, weight, bias, eps)
        self._made(program, node, emit(program, native_ops.group_norm, args, self._shape(node), value(node).dtype, node))

    def _upsample(self, program: Program, node: torch.fx.Node) -> None:
        x = args_of(node)[0]
        if x in self._last:
            args = (self._last[x], list(value(node).shape[2:]))
            made = emit(program, native_ops.upsample_nearest2d, args, self._shape(node), value(node).dtype, node)
            self._made(program, node, made)

    def _elementwise(self, program: Program, node: torch.fx.Node) -> None:
        shape = value(node).shape
        tensors = node.all_input_nodes
        if len(shape) < 3 or not any(x in self._last and value(x).shape == shape for x in tensors):
            return

        def moved(x: torch.fx.Node) -> torch.fx.Node:
            if x in self._last:
                return self._last[x]
            given = value(x).shape
            if len(given) == len(shape) and math.prod(given[2:]) == 1:
                # Factors per channel: the same numbers in the same order.
                target = [given[0], *given[2:], given[1]]
                return emit(program, _aten.view.default, (x, target), target, value(x).dtype, x)
            return x if math.prod(given) == 1 and not given else self._moved(program, x)

        if any(0 < value(x).ndim < len(shape) for x in tensors):
            self.why_not(node, "an operand has fewer dimensions")
            return
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), moved)
        made = emit(program, node.target, args, self._shape(node), value(node).dtype, node)
        made.kwargs = kwargs
        self._made(program, node, made)

    def _cat(self, program: Program, node: torch.fx.Node) -> None:
        parts, dim = arguments(node, ("tensors", "dim"), (None, 0))
        ndim = value(node).ndim
        if ndim < 3 or not any(x in self._last for x in parts):
            return
        args = ([self._moved(program, x) for x in parts], _position(dim % ndim, ndim))
        self._made(program, node, emit(program, _aten.cat.default, args, self._shape(node), value(node).dtype, node))

    def _pad(self, program: Program, node: torch.fx.Node) -> None:
        x, pad = args_of(node)[:2]
        if x not in self._last or value(x).ndim != 4 or len(pad) > 4:
            return
        args = (self._last[x], [0, 0, *pad], *args_of(node)[2:])
        self._made(program, node, emit(program, node.target, args, self._shape(node), value(node).dtype, node))

    def _slice(self, program: Program, node: torch.fx.Node) -> None:
        x = args_of(node)[0]
        if x in self._last:
            dim = args_of(node)[1] if len(node.args) > 1 else 0
            ndim = value(node).ndim
            args = (self._last[x], _position(dim % ndim, ndim), *args_of(node)[2:])
            self._made(program, node, emit(program, node.target, args, self._shape(node), value(node).dtype, node))

    def _permute(self, program: Program, node: torch.fx.Node) -> None:
        x = args_of(node)[0]
        ndim = value(node).ndim
        dims = dims_of(node)
        if x in self._last:
            dims = [_position(d, ndim) for d in dims]
            x = self._last[x]
            if dims == list(range(ndim)):
                self.replace(program, node, x)
                return
            made = emit(program, _aten.permute.default, (x, dims), value(node).shape, value(node).dtype, node)
            self.replace(program, node, made)
            node = made
        if ndim > 2 and dims == [0, ndim - 1, *range(1, ndim - 1)]:
            self._last[node] = x

    def _view(self, program: Program, node: torch.fx.Node) -> None:
        x = args_of(node)[0]
        before, after = value(x).shape, value(node).shape
        # Positions are only counted differently: the channels stay where they are.
        if x in self._last and len(before) > 2 and len(after) > 2 and before[:2] == after[:2]:
            shape = self._shape(node)
            self._made(
                program, node, emit(program, _aten.view.default, (self._last[x], list(shape)), shape, value(node).dtype, node)
            )


_HANDLERS = {
    "aten.conv2d.default": ChannelsLast._conv2d,
    "aten.conv3d.default": ChannelsLast._conv3d,
    "aten.group_norm.default": ChannelsLast._group_norm,
    "aten.upsample_nearest2d.vec": ChannelsLast._upsample,
    "aten.upsample_nearest2d.default": ChannelsLast._upsample,
    "aten.cat.default": ChannelsLast._cat,
    "aten.pad.default": ChannelsLast._pad,
    "aten.constant_pad_nd.default": ChannelsLast._pad,
    "aten.slice.Tensor": ChannelsLast._slice,
    "aten.permute.default": ChannelsLast._permute,
    "aten.transpose.int": ChannelsLast._permute,
    "aten.view.default": ChannelsLast._view,
    "aten.reshape.default": ChannelsLast._view,
    "aten._unsafe_view.default": ChannelsLast._view,
    "aten.flatten.using_ints": ChannelsLast._view,
    "aten.unflatten.int": ChannelsLast._view,
}


def _position(dim: int, ndim: int) -> int:
    """Where a dimension of (n, c, ...) is in (n, ..., c)."""
    return dim if dim == 0 else ndim - 1 if dim == 1 else dim - 1


def arguments(node: torch.fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> list[Any]:
    """A node's arguments by the names of its schema."""
    given = dict(zip(names, node.args)) | {k: v for k, v in node.kwargs.items() if k in names}
    return [given.get(name, default) for name, default in zip(names, defaults)]


def _is_stored(weight: torch.fx.Node, bias: torch.fx.Node | None) -> bool:
    """Whether they are weights, not computed."""
    return weight.op == "placeholder" and (bias is None or bias.op == "placeholder")


def _each(number: int | list[int], dims: int) -> list[int]:
    """An argument of a convolution, one number for each dimension."""
    return [number] * dims if isinstance(number, int) else (list(number) * dims)[:dims]
