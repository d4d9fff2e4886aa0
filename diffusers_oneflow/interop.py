"""Tensors between torch and OneFlow, without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]  # it is there, and documented

from . import engine

if TYPE_CHECKING:
    from .kernels.weights import WeightStore

# What from_dlpack takes; bool travels as uint8, the same bytes.
_CPU = torch.device("cpu")
_DIRECT = {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8}


def refusal(tensor: torch.Tensor, device: torch.device = _CPU) -> str | None:
    """Why a graph on `device` cannot take `tensor`, or None if it can."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a tensor of type {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"a tensor of layout {tensor.layout}"
    if tensor.dtype not in _DIRECT and tensor.dtype != torch.bool:
        return f"a tensor of {tensor.dtype}"
    if tensor.numel() == 0:
        return "an empty tensor"
    # What comes from the CPU a graph on a GPU takes there: the module's code moves it, or torch.export refuses it.
    if tensor.device not in (device, _CPU):
        return f"a tensor on {tensor.device}" if device.type == "cpu" else f"a tensor on {tensor.device} for a model on {device}"
    return None


def real(tensor: torch.Tensor) -> torch.Tensor:
    """What a graph gets of an input: of a complex tensor a view as pairs of real numbers (`passes.complex_numbers`)."""
    if tensor.is_complex() and type(tensor) is torch.Tensor and tensor.layout == torch.strided:
        return torch.view_as_real(tensor.detach().resolve_conj())
    return tensor


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy of it if it is not contiguous: OneFlow would make it so in the caller's own memory."""
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.contiguous()


def to_flow(tensor: torch.Tensor) -> Any:
    """A OneFlow tensor on the memory of a dense torch tensor (any shape; bool as uint8)."""
    if tensor.dtype == torch.bool:
        tensor = tensor.view(torch.uint8)
    return engine.flow().from_dlpack(to_dlpack(tensor))


def flow_view(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...] | None]:
    """A dense view of a weight's memory, and the permutation that leads back from it.

    A channels_last weight is dense when its dimensions are ordered by stride. The permutation is
    None for a contiguous one.

    Raises:
        ValueError: the tensor is no permutation of a dense one (expanded, strided).
    """
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor, None
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda d: (-strides[d], d))
    view = tensor.permute(order)
    if not view.is_contiguous():
        raise ValueError(f"strides {tuple(tensor.stride())} of shape {tuple(tensor.shape)} are not dense")
    return view, tuple(order.index(d) for d in range(tensor.ndim))


@dataclass
class Weight:
    """A parameter, buffer or constant as one graph sees it.

    Attributes:
        tensor: torch's own.
        raw: the OneFlow tensor on its memory, and the permutation to apply (`flow_view`).
        store: where the pack's kernels get it from (`kernels.weights.WeightStore`); None without the pack.
        cast: the half type that the pack's kernels read it in, where it is float32 itself.
    """

    tensor: torch.Tensor
    raw: tuple[Any, ...]
    store: WeightStore | None = None
    cast: torch.dtype | None = None
    _made: object = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the graph reads."""
        return self.cast or self.tensor.dtype

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.tensor.shape

    def flow(self) -> Any:
        """The tensor for OneFlow's ops; to be called while the graph is built."""
        if self._made is None:
            from .lowering.shape import permute
            from .lowering.types import cast

            tensor, order = self.raw
            made = permute(tensor, list(order)) if order else tensor
            # Bool comes as uint8: dlpack has no bool.
            made = cast(made, torch.bool) if self.tensor.dtype == torch.bool else made
            if self.cast is not None:
                from .kernels.lowering import convert

                made = convert(made, self.cast)
            self._made = made
        return self._made


def flow_tensor(value: Any) -> Any:
    """A OneFlow tensor of what may be a `Weight`."""
    return value.flow() if isinstance(value, Weight) else value
