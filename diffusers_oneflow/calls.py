"""A call of a module, and what of it a graph gets and a key holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import signature, strengths
from .autocast import Autocast


class Open(NamedTuple):
    """Which numbers are inputs of a graph, for any value: the call's own, and the strengths of LoRA adapters."""

    numbers: bool
    strengths: bool


@dataclass
class Call:
    """One call of a module.

    Attributes:
        flat: its arguments, without the factor.
        strengths: of the module's LoRA adapters.
        factor: by which this call multiplies them.
        dtype: in which a graph takes them.
        autocast: under which it is made.
    """

    flat: signature.Flat
    strengths: strengths.Sorted
    factor: float
    dtype: torch.dtype
    autocast: Autocast | None = None

    def tensors(self, opened: Open) -> list[torch.Tensor]:
        """What a graph gets."""
        tensors = list(self.flat.tensors)
        if opened.numbers:
            tensors += [torch.tensor(n, dtype=torch.float64 if type(n) is float else torch.int64) for n in self.flat.numbers]
        if opened.strengths:
            tensors += [torch.tensor(n, dtype=self.dtype) for n in self.strengths.values(self.factor)]
        return tensors

    def key(self, opened: Open) -> tuple[Any, ...]:
        """The numbers that are no inputs."""
        return opened, *self._baked(opened), self.strengths.number

    def fixed(self, opened: Open) -> tuple[Any, ...]:
        """The same for other processes: what of the call is part of a program, its arguments' description aside."""
        return tuple(opened), *self._baked(opened), self.strengths.layout, self.dtype

    def _baked(self, opened: Open) -> tuple[Any, ...]:
        numbers = None if opened.numbers else tuple(map(_number_key, self.flat.numbers))
        values = None if opened.strengths else tuple(map(_number_key, self.strengths.values(self.factor)))
        return numbers, values


def _number_key(number: float) -> tuple[Any, ...]:
    return type(number), number.hex() if type(number) is float else number
