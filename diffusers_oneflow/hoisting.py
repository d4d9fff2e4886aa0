"""Runs the parts of a graph that depend on the prompt or the timestep only when these change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import engine
from .capture import Program
from .graph import CompiledGraph
from .passes.hoist import Prologue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from . import interop
    from .kernels.weights import WeightStore

# Of results that are kept for inputs that come again: the timesteps of the next image.
_BUDGET = 64 << 20


class Hoisted:
    """A compiled prologue and what it gave for the latest inputs.

    Inputs are compared by content: the same numbers give the same results, whatever tensor holds them. Writes to the
    weights that the prologue reads, by whatever means, are noticed (`WriteWatch`) and empty what was kept.

    Args:
        graph: the compiled prologue.
        positions: of its inputs among those of the whole call.
        buffers: what the main graph reads, one for each result.
        weights: the tensors that the prologue reads. Of those that the graph's store releases it notices writes itself:
            they are not there to be watched.
        content: what tells prologues that compute the same from others.

    Attributes:
        users: how many graphs read the buffers: those for other sizes share one prologue.
    """

    def __init__(
        self,
        graph: CompiledGraph,
        positions: list[int],
        buffers: list[torch.Tensor],
        weights: list[torch.Tensor],
        content: tuple[Any, ...],
    ) -> None:
        self.graph, self.runs, self.users, self.content = graph, 0, 0, content
        self.buffers, self._positions, self._weights = buffers, positions, weights
        self._kept: OrderedDict[bytes, list[torch.Tensor]] = OrderedDict()
        self._latest: list[torch.Tensor] | None = None
        store = graph.store if graph.store is not None and graph.store.releases else None
        self._store = store
        self._packings: tuple[int, ...] = ()
        watched = weights if store is None else [w for w in weights if not store.packs(w)]
        self._watch = engine.native().WriteWatch([(w.data_ptr(), w.nbytes) for w in watched])

    @property
    def kept_bytes(self) -> int:
        """Bytes of results kept for inputs that may come again."""
        return sum(t.nbytes for tensors in self._kept.values() for t in tensors)

    def release(self) -> None:
        """One graph less reads the buffers; with the last, the prologue is freed."""
        self.users -= 1
        if self.users <= 0:
            self.graph.close()

    def update(self, tensors: list[torch.Tensor]) -> None:
        """Let the buffers hold the results for a call's tensors."""
        inputs = [tensors[i] for i in self._positions]
        if self._written():
            self._latest = None
            self._kept.clear()
        if self._latest is not None and all(map(_same, inputs, self._latest)):
            return
        small = sum(t.nbytes for t in inputs) <= 4096
        key = b"".join(_bits(t).tobytes() for t in inputs) if small else b""
        results = self._kept.get(key) if small else None
        if results is None:
            results = self.graph(inputs)
            self.runs += 1
            if small:
                self._keep(key, results)
        for buffer, result in zip(self.buffers, results):
            buffer.copy_(result)
        self._latest = [t.detach().clone() for t in inputs]

    def _written(self) -> bool:
        """Whether any of the weights was written to since last asked."""
        written = bool(self._watch.changed())
        if self._store is None:
            return written
        self._store.refresh()
        before, self._packings = self._packings, self._store.packings(self._weights)
        return written or before != self._packings

    def _keep(self, key: bytes, results: list[torch.Tensor]) -> None:
        self._kept[key] = results
        size = sum(t.nbytes for t in results)
        while len(self._kept) > max(1, _BUDGET // max(size, 1)):
            self._kept.popitem(last=False)


def _bits(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equality to the bit: NaN equals NaN, and -0.0 is not 0.0."""
    return torch.equal(a.detach().contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def build(
    prologues: list[Prologue],
    program: Program,
    bind: Callable[[Program], dict[str, interop.Weight]],
    examples: list[torch.Tensor],
    store: WeightStore | None,
    known: Sequence[Hoisted] = (),
) -> list[Hoisted]:
    """Compile prologues; `bind` makes the weights of a program, `examples` are the whole call's tensors.

    Where one of the `known` computes the same, of graphs for other sizes, it is used, and the program reads its buffers.
    """
    made = []
    for prologue in prologues:
        part = prologue.program
        positions = [program.inputs.index(name) for name in part.inputs]
        weights = bind(part)
        content = _content(part, positions, weights)
        same = next((k for k in known if k.content == content and k.graph.store is store), None)
        if same is not None:
            program.constants.update(zip(prologue.results, same.buffers))
            made.append(same)
            continue
        graph = CompiledGraph(part, weights, [examples[i] for i in positions], store=store)
        buffers = [program.constants[name] for name in prologue.results]
        made.append(Hoisted(graph, positions, buffers, [w.tensor for w in weights.values()], content))
    return made


def _content(part: Program, positions: list[int], weights: dict[Any, Any]) -> tuple[Any, ...]:
    """What a prologue computes, of which inputs of the call and which tensors."""
    sources: dict[str, tuple[Any, ...]] = {name: ("input", position) for name, position in zip(part.inputs, positions)}
    for name, weight in weights.items():
        # What was folded is nobody's but the program's: there the content counts. All else may be written to.
        folded = name in part.constants and name.startswith("folded_")
        sources[name] = ("folded", _bits(weight.tensor).tobytes()) if folded else ("tensor", weight.tensor.data_ptr())
    described: list[tuple[str, str]] = []
    known: dict[torch.fx.Node, tuple[Any, ...]] = {}
    for node in part.graph.nodes:
        if node.op == "placeholder":
            made = node.meta["val"]
            known[node] = (*sources.get(node.name, ("unread", 0)), tuple(made.shape), made.dtype)
        else:
            # Of placeholders only those that are read count, in whatever order they stand.
            described.append((str(node.target), repr(torch.fx.map_arg((node.args, node.kwargs), known.get))))
            known[node] = ("node", len(described))
    return tuple(described)
