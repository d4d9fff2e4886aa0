"""Weights for the heavy kernels: torch tensors in numbered slots, packed as oneDNN wants them."""

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import engine
from .loader import pack as _native

_numbers = itertools.count()


@dataclass
class _Packed:
    slot: int
    source: torch.Tensor
    pack: Callable[[torch.Tensor], torch.Tensor]


class WeightStore:
    """The weights of one module's graphs; graphs of several shapes share what they can.

    Args:
        weights: of `OneFlowConfig`: of what there are packed copies.
    """

    def __init__(self, weights: str = "auto"):
        self._packs = {"auto": (torch.bfloat16, torch.float16), "shared": ()}.get(
            weights, (torch.float32, torch.bfloat16, torch.float16)
        )
        self._slots: dict[tuple, int] = {}
        self._packed: dict[tuple, _Packed] = {}
        self._kept: list[torch.Tensor] = []
        self._watched: list[_Packed] = []
        self._watch = None
        weakref.finalize(self, _give_back, self._slots).atexit = False

    @property
    def packed_bytes(self) -> int:
        """Bytes of all packed copies."""
        return sum(p.source.nbytes for p in self._packed.values())

    def plain(self, tensor: torch.Tensor) -> int:
        """The slot of a tensor as it is: writes into it are seen."""
        return self._slot(("plain", id(tensor)), tensor, None)

    def filter(self, weight: torch.Tensor) -> int:
        """The slot of a packed copy for this package's float32 kernels, or -1 where they read torch's own.

        Args:
            weight: (oc, c, kh, kw) of a convolution or (out, in) of a linear layer, any strides.
        """
        return self._slot(("filter", id(weight)), weight, _pack_filter) if weight.dtype in self._packs else -1

    def convolution(self, weight, stride, padding, dilation, groups, image: list[int]) -> int:
        """The slot of a convolution's weight for oneDNN; `image` is the input's (n, c, h, w)."""
        key = ("convolution", id(weight), *stride, *padding, *dilation, groups)

        def pack(w):
            return torch.ops.mkldnn._reorder_convolution_weight(w.contiguous(), padding, stride, dilation, groups, image)

        return self._slot(key, weight, pack)

    def linear(self, weight, rows: int) -> int:
        """The slot of a linear layer's weight (out, in) for oneDNN."""
        return self._slot(("linear", id(weight)), weight, lambda w: torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), rows))

    def _slot(self, key: tuple, tensor: torch.Tensor, pack) -> int:
        if pack is None or tensor.dtype not in self._packs:
            key = ("plain", id(tensor))
        if key not in self._slots:
            slot = self._slots[key] = next(_numbers)
            tensor = tensor.detach()
            self._kept.append(tensor)  # ids must not be used again
            if key[0] == "plain":
                _set(slot, tensor)
            else:
                self._packed[key] = _Packed(slot, tensor, pack)
                self._fill(self._packed[key])
        return self._slots[key]

    @staticmethod
    def _fill(packed: _Packed):
        with torch.no_grad():
            _set(packed.slot, packed.pack(packed.source))

    def watch(self):
        """From here on notice writes to what there are packed copies of."""
        if len(self._packed) != len(self._watched):
            # A new watch knows nothing of what was written before it.
            self.refresh()
            self._watched = list(self._packed.values())
            self._watch = engine.native().WriteWatch([(p.source.data_ptr(), _span(p.source)) for p in self._watched])

    def refresh(self):
        """Pack anew what was written to, by whatever means; some 0.1 ms where nothing was. To be called before each run."""
        if self._watch is not None:
            for position in self._watch.changed():
                self._fill(self._watched[position])


def _give_back(slots: dict[tuple, int]):
    for slot in slots.values():
        _native().set_slot(slot, None)


def filter_sizes(weight: torch.Tensor) -> tuple[list[int], list[int]]:
    """Sizes and strides of a weight as a filter (n, c, kh, kw)."""
    view = weight if weight.ndim == 4 else weight[:, :, None, None]
    return list(view.shape), list(view.stride())


def _pack_filter(weight: torch.Tensor) -> torch.Tensor:
    sizes, strides = filter_sizes(weight)
    made = torch.empty(_native().packed_bytes(0, sizes, strides, 0) // 4)
    _native().pack(weight.data_ptr(), sizes, strides, made.data_ptr())
    return made


def _span(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    return (sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1) * tensor.element_size()


def _set(slot: int, tensor: torch.Tensor):
    _native().set_slot(slot, torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor))
