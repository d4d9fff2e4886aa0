"""What a module has been compiled to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from . import budget, hoisting, signature
from .calls import Open
from .graph import CompiledGraph


@dataclass
class Entry:
    """A compiled graph and how it came to be."""

    graph: CompiledGraph
    result: signature.Flat
    opened: Open
    shapes: list[str]
    ops: dict[str, int]
    rewrites: list[Any]
    seconds: dict[str, float]
    hoisted: list[hoisting.Hoisted]
    origin: str = "captured"
    calls: int = 0
    used: int = 0

    @property
    def device(self) -> torch.device:
        """Where its activations are."""
        return self.graph.device

    @property
    def bytes(self) -> int:
        """What it takes beside the arena that all graphs on the CPU share, about."""
        graphs = [self.graph, *(part.graph for part in self.hoisted)]
        ops = sum(sum(counts.values()) for g in graphs for counts in g.kernels.values())
        kept = sum(part.kept_bytes for part in self.hoisted)  # shared ones count for each, which is too much, not too little
        return sum(g.memory.owned for g in graphs) + ops * budget.BYTES_PER_OP + kept

    def __post_init__(self) -> None:
        for part in self.hoisted:
            part.users += 1

    def close(self) -> None:
        """Free the memory of all its graphs."""
        for part in self.hoisted:
            part.release()
        self.graph.close()


@dataclass
class Record:
    """What a dispatcher has done, for `explain`.

    Attributes:
        fallbacks: reason -> number of calls that ran in torch for it.
        built: graphs compiled so far, dropped ones included.
    """

    fallbacks: dict[str, int] = field(default_factory=dict)
    built: int = 0
