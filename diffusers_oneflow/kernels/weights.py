"""Weights for the heavy kernels: torch tensors in numbered slots, packed as oneDNN wants them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import engine
from .loader import pack as _native

if TYPE_CHECKING:
    from ..runtime._native import Released, WriteWatch

_numbers = itertools.count()
# Of calls one soon after the other that found torch's copy of a weight touched: from then on it stays in memory.
_PATIENCE = 3
# Of products with at most so many, reading the weight is what takes time.
_FEW_ROWS = 256


@dataclass
class _Packed:
    """A packed copy.

    Attributes:
        dtype: of the copy.
        memory: torch's own copy where that may be dropped (runtime/csrc/dropped.h), else None.
        stays: torch's own copy is not to be dropped, again or at all.
        packings: how often it was packed.
        touched, streak: the latest refresh that found it touched, and how many did in a row.
    """

    slot: int
    source: torch.Tensor
    dtype: torch.dtype
    pack: Callable[[torch.Tensor], torch.Tensor]
    memory: Released | None = None
    stays: bool = True
    packings: int = 0
    touched: int = 0
    streak: int = 0

    def fill(self) -> torch.Tensor:
        """Pack what the weight holds now, which is all in memory; the packed copy."""
        with torch.no_grad():
            for _ in range(2):
                made = self.pack(self.source.to(self.dtype))
                self.packings += 1
                _set(self.slot, made)
                if self.stays or self._release(made):
                    return made
        self.stays = True
        return made

    def give_back(self) -> None:
        """Bring torch's own copy back into memory, as ordinary memory."""
        if self.memory is not None:
            self.memory.give_back()
            self.memory = None

    def ranges(self) -> list[tuple[int, int]]:
        """What is to be watched for writes: of dropped memory only its edges, which share pages with something else."""
        if self.memory is not None:
            return list(self.memory.edges)
        return [(self.source.data_ptr(), _span(self.source))]

    def _release(self, made: torch.Tensor) -> bool:
        """Drop torch's own copy of what was just packed; False if it has changed meanwhile."""
        source = _native().filter_source(self.source.data_ptr(), *filter_sizes(self.source), made.data_ptr())
        if source is not None:
            memory = engine.native().Released(self.source.data_ptr(), _span(self.source), source)
            outcome = memory.drop()
            if outcome == "changed":
                return False
            self.memory = memory if outcome == "dropped" else None
        self.stays = self.memory is None
        return True


class WeightStore:
    """The weights of one module's graphs; graphs of several shapes share what they can.

    Args:
        weights: of `OneFlowConfig`: of what there are packed copies, and whether torch's own are dropped.
    """

    def __init__(self, weights: str = "auto") -> None:
        self._packs = {"auto": (torch.bfloat16, torch.float16), "shared": ()}.get(
            weights, (torch.float32, torch.bfloat16, torch.float16)
        )
        self.releases = weights == "release"
        self._slots: dict[tuple[Any, ...], int] = {}
        self._packed: dict[tuple[Any, ...], _Packed] = {}
        self._kept: list[torch.Tensor] = []
        # What is to be moved into huge pages, and of which weights that was noted.
        self._scattered: list[torch.Tensor] = []
        self._noted: set[int] = set()
        self._watched: list[_Packed] = []
        self._count = self._fills = self._refreshes = 0
        self._watch: WriteWatch | None = None
        self._finalizer = weakref.finalize(self, _give_back, self._slots, self._packed)
        self._finalizer.atexit = False

    @property
    def packed_bytes(self) -> int:
        """Bytes of all packed copies."""
        return sum(p.source.numel() * p.dtype.itemsize for p in self._packed.values())

    @property
    def released_bytes(self) -> int:
        """Bytes of torch's own copies that are not in memory now."""
        return sum(p.memory.bytes for p in self._packed.values() if p.memory is not None)

    def close(self) -> None:
        """Bring torch's own copies back and drop the packed ones. No graph that reads them may run after that."""
        self._finalizer()

    def packs(self, tensor: torch.Tensor) -> bool:
        """Whether there is a packed copy of a weight: then `packings` changes after each write to it."""
        return any(id(tensor) == key[1] for key in self._packed)

    def packings(self, tensors: list[torch.Tensor]) -> tuple[int, ...]:
        """How often the weights among `tensors` were packed, as of the latest `refresh`."""
        ids = set(map(id, tensors))
        return tuple(p.packings for key, p in self._packed.items() if key[1] in ids)

    def plain(self, tensor: torch.Tensor, dtype: torch.dtype) -> int:
        """The slot of a tensor as it is, or of a copy in another dtype: writes into it are seen."""
        return self._slot(("plain", id(tensor)), tensor, dtype, None)

    def filter(self, weight: torch.Tensor, rows: int) -> int:
        """The slot of a packed copy for this package's float32 kernels, or -1 where they read torch's own.

        Args:
            weight: (oc, c, kh, kw) of a convolution or (out, in) of a linear layer, any strides.
            rows: of the product, pixels of all images for a convolution.
        """
        if weight.dtype in self._packs:
            return self._slot(("filter", id(weight)), weight, weight.dtype, _pack_filter)
        if rows <= _FEW_ROWS and id(weight) not in self._noted:
            self._noted.add(id(weight))
            self._scattered.append(weight.detach())
        return -1

    def convolution(
        self,
        weight: torch.Tensor,
        dtype: torch.dtype,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        image: list[int],
    ) -> int:
        """The slot of a convolution's weight for oneDNN, in `dtype`; `image` is the input's (n, c, h, w)."""
        key = ("convolution", id(weight), *stride, *padding, *dilation, groups)

        def pack(w: torch.Tensor) -> torch.Tensor:
            dense = _of_images(w).contiguous()
            made: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(dense, padding, stride, dilation, groups, image)
            return made

        return self._slot(key, weight, dtype, pack)

    def linear(self, weight: torch.Tensor, dtype: torch.dtype, rows: int) -> int:
        """The slot of a linear layer's weight (out, in) for oneDNN, in `dtype`."""

        def pack(w: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(w.contiguous(), rows)
            return made

        return self._slot(("linear", id(weight)), weight, dtype, pack)

    def _slot(
        self,
        key: tuple[Any, ...],
        tensor: torch.Tensor,
        dtype: torch.dtype,
        pack: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> int:
        cast = dtype != tensor.dtype
        # What has to be copied anyway is packed.
        if pack is None or not (cast or dtype in self._packs):
            key, pack = ("plain", id(tensor)), _of_images
        key = (*key, dtype)
        if key not in self._slots:
            slot, tensor = next(_numbers), tensor.detach()
            if pack is _of_images and not cast:
                _set(slot, _of_images(tensor))
            else:
                releases = self.releases and pack is _pack_filter
                packed = _Packed(slot, tensor, dtype, pack, stays=not releases)
                # Not every processor can: of what failed nothing is known afterwards.
                self._scattered.append(packed.fill())
                self._packed[key] = packed
            self._kept.append(tensor)  # ids must not be used again
            self._slots[key] = slot
        return self._slots[key]

    def watch(self) -> None:
        """From here on notice writes to what there are packed copies of."""
        if len(self._packed) != self._count:
            # A new watch knows nothing of what was written before it.
            self.refresh()
            self._renew(self._watch_all())

    def gather(self) -> None:
        """Move memory that every call reads as fast as it can into huge pages, meanwhile.

        Of ordinary ones finding them took up to a third of the time of a product of few rows. What is packed anew stays as it is.
        """
        found, self._scattered = self._scattered, []
        # While Linux makes room for huge pages, some others cannot be released.
        if found and not self.releases:
            engine.native().collapse_pages([_memory(t) for t in found], False)

    def refresh(self) -> None:
        """Pack anew what was written to, by whatever means; some 0.1 ms where nothing was. To be called before each run."""
        if self._watch is not None:
            self._renew(self._touched() + [self._watched[i] for i in self._watch.changed()])

    def _renew(self, stale: list[_Packed]) -> None:
        """Pack anew."""
        while stale:
            exposed = []
            for packed in {p.slot: p for p in stale}.values():
                was_dropped = packed.memory is not None
                packed.give_back()
                packed.fill()
                if was_dropped and packed.memory is None:
                    exposed.append(packed)
            # What stays in memory from now on may be written to before the watch knows of it.
            stale = exposed + self._watch_all() if exposed else []

    def _watch_all(self) -> list[_Packed]:
        """Begin a new watch; what was written to before that, and after the last `refresh`."""
        packed = list(self._packed.values())
        ranges = [(p, r) for p in packed for r in p.ranges()]
        fresh = engine.native().WriteWatch([r for _, r in ranges])
        late = [self._watched[i] for i in self._watch.changed()] if self._watch is not None else []
        self._watched, self._watch, self._count = [p for p, _ in ranges], fresh, len(packed)
        return late

    def _touched(self) -> list[_Packed]:
        """Those whose dropped copy was touched and cannot just be dropped again: it was written to, or is used all the time."""
        fills, before = engine.native().fills(), self._fills
        self._refreshes, self._fills = self._refreshes + 1, fills
        if not self.releases or fills == before:
            return []
        return [p for p in self._packed.values() if p.memory is not None and p.memory.touched and not self._drop(p)]

    def _drop(self, packed: _Packed) -> bool:
        soon = self._refreshes - packed.touched <= _PATIENCE
        packed.touched, packed.streak = self._refreshes, packed.streak + 1 if soon else 1
        packed.stays = packed.streak >= _PATIENCE
        return not packed.stays and packed.memory is not None and packed.memory.drop() == "dropped"


def _give_back(slots: dict[tuple[Any, ...], int], packed: dict[tuple[Any, ...], _Packed]) -> None:
    # One after the other: memory never holds both copies of all.
    for key, slot in slots.items():
        if key in packed:
            packed[key].give_back()
        _native().set_slot(slot, None)


def filter_sizes(weight: torch.Tensor) -> tuple[list[int], list[int]]:
    """Sizes and strides of a weight as a filter (n, c, kh, kw)."""
    view = weight[:, :, None, None] if weight.ndim == 2 else _of_images(weight)
    return list(view.shape), list(view.stride())


def _of_images(weight: torch.Tensor) -> torch.Tensor:
    """A dense filter of videos (oc, c, kt, kh, kw) as one of images (oc, c * kt, kh, kw); all else as it is."""
    return weight.flatten(1, 2) if weight.ndim == 5 else weight


def _pack_filter(weight: torch.Tensor) -> torch.Tensor:
    sizes, strides = filter_sizes(weight)
    made = torch.empty(_native().packed_bytes(0, sizes, strides, 0) // 4)
    _native().pack(weight.data_ptr(), sizes, strides, made.data_ptr())
    return made


def _span(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to its last."""
    return (sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1) * tensor.element_size()


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes."""
    if tensor.is_mkldnn:
        return torch.ops.mkldnn.data_ptr(tensor), torch.ops.mkldnn._nbytes(tensor)
    return tensor.data_ptr(), _span(tensor)


def _set(slot: int, tensor: torch.Tensor) -> None:
    _native().set_slot(slot, torch._C._aoti.unsafe_alloc_void_ptr_from_tensor(tensor))
