"""A module's weights as its graphs take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import interop
from .capture import Program
from .config import OneFlowConfig
from .errors import Unsupported
from .passes.base import value
from .structure import Structure

if TYPE_CHECKING:
    from .kernels.weights import WeightStore


class BoundWeights:
    """OneFlow tensors on the memory of a module's weights, one per weight for all its graphs, and the pack's copies."""

    def __init__(self, config: OneFlowConfig) -> None:
        self._mode = config.weights
        self._bound: dict[str, tuple[Any, ...]] = {}
        self.store: WeightStore | None = None

    def prepare(self, native: bool) -> WeightStore | None:
        """The store of weights for the pack's kernels, or None without the pack."""
        if native and self.store is None:
            from .kernels.weights import WeightStore

            self.store = WeightStore(self._mode)
        return self.store if native else None

    def bind(self, structure: Structure, store: WeightStore | None, program: Program) -> dict[str, interop.Weight]:
        """Placeholder -> weight, to be cast where the placeholder has another dtype (`passes.cast_weights`).

        Raises:
            Unsupported: OneFlow cannot read a weight from its memory.
        """
        bound = {}
        read = {node.name: value(node).dtype for node in program.graph.find_nodes(op="placeholder")}
        for name, qualified in program.weights.items():
            if qualified not in self._bound:
                self._bound[qualified] = _weight(qualified, structure.weights[qualified])
            weight = structure.weights[qualified]
            cast = read[name] if name in read and read[name] != weight.dtype else None
            bound[name] = interop.Weight(weight, self._bound[qualified], store, cast)
        for name, constant in program.constants.items():
            bound[name] = interop.Weight(constant, _weight(name, constant), store)
        return bound

    def drop(self) -> None:
        """Forget them. Graphs of another structure may still read from the store: it goes with the last of them."""
        self._bound.clear()
        self.store = None


def _weight(name: str, tensor: torch.Tensor) -> tuple[Any, ...]:
    if reason := interop.refusal(tensor.detach() if type(tensor) is torch.nn.Parameter else tensor):
        raise Unsupported(f"the weight {name}", reason)
    try:
        view, order = interop.flow_view(tensor)
    except ValueError as error:
        raise Unsupported(f"the weight {name}", str(error)) from None
    return interop.to_flow(view), order
