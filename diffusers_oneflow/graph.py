"""One captured program as one oneflow.nn.Graph."""

from __future__ import annotations

import functools
import itertools
import time
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import engine, graph_body, interop
from .capture import Program, op_name
from .errors import Unsupported
from .flow_graph import ENGINE_LOCK, chain, graph_class
from .ports import Inputs, Outputs
from .progress import Stage
from .provenance import where

if TYPE_CHECKING:
    from .kernels.weights import WeightStore

_ids = itertools.count(1)


@dataclass(frozen=True)
class Memory:
    """Bytes of one graph.

    Attributes:
        activations: the part of the shared arena that it uses.
        unplanned: what its activations would take without reuse.
        owned: inputs, outputs and control registers, its alone.
    """

    activations: int
    unplanned: int
    owned: int


@dataclass(frozen=True)
class Place:
    """Where an op of the pack comes from.

    Attributes:
        op: the program's op (``aten.layer_norm.default``).
        kernel: the pack's (``dfo_layer_norm``).
        where: module path and source line.
        bytes: what the op reads and writes, weights included.
    """

    op: str
    kernel: str
    where: str
    bytes: int


class GraphClosed(Exception):
    """The graph was dropped between being found and being run; look for it again."""


class CompiledGraph:
    """A program that OneFlow has compiled for one set of shapes.

    Args:
        program: what to run.
        weights: placeholder name -> `interop.Weight`.
        examples: one torch tensor per input, for shapes and dtypes.
        store: the weights for the kernel pack (`kernels.weights.WeightStore`), whose kernels then run what they can.
        stage: called with ("lowering" | "compiling", fraction done) as the build goes on.

    Raises:
        Unsupported: an op or a dtype that has no lowering; the message has op, module path and source line.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        program: Program,
        weights: dict[Any, Any],
        examples: list[torch.Tensor],
        stage: Stage = lambda name, done: None,
        store: WeightStore | None = None,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self.kernels: dict[str, Counter[str]] = {}
        self.places: dict[str, Place] = {}
        self._noted: list[Place] = []
        self.store = store
        self._id = next(_ids)
        self._inputs, self._outputs = Inputs(program, examples), Outputs(program)
        if not self._inputs.names or not self._outputs.computed:
            raise Unsupported("a graph", "no output depends on an input tensor")
        with ENGINE_LOCK:
            self._build(program, weights, self._inputs.enter(examples), stage, store is not None)
            if store is not None:
                store.watch()
        self._finalizer = weakref.finalize(self, _release, self._graph, self._id)
        self._finalizer.atexit = False

    def _build(
        self,
        program: Program,
        weights: dict[str, interop.Weight],
        inputs: list[Any],
        stage: Stage,
        use_pack: bool,
    ) -> None:
        names = self._inputs.names
        note = functools.partial(self._note, use_pack)
        body = functools.partial(graph_body.lower, program, names, self._outputs.computed, weights, stage, use_pack, note)
        graph = graph_class()(body)
        native = engine.native()
        start = time.perf_counter()
        try:
            graph.build_graph(*inputs)
            self.places = dict(zip(chain(graph), self._noted))
            graph.serves = bool(self.places)
            lowered = time.perf_counter()
            stage("compiling", 0.0)
            native.begin_graph(self._id)
            try:
                graph.finish()
            finally:
                report = native.end_graph()
        finally:
            # Also of a build that failed: a later one would end the process.
            native.drop_leftovers(graph.name)
        stage("compiling", 1.0)
        self.seconds = {"lowering": lowered - start, "compiling": time.perf_counter() - lowered}
        self.memory = Memory(report["planned"], report["unplanned"], report["owned"])
        graph.forget_source()
        self._graph = graph

    def _note(self, native: bool, node: torch.fx.Node) -> None:
        """Remember which kernels run a node that was just lowered."""
        ops = []
        if native:
            from .kernels.node import made

            ops = made.copy()
            made.clear()
        size = _bytes(node) + sum(map(_bytes, node.all_input_nodes))
        self._noted += [Place(op_name(node), kind, where(node), size // len(ops)) for kind in ops]
        self.kernels.setdefault(op_name(node), Counter()).update(ops or ["OneFlow's own"])

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run on CPU tensors of any strides, one per input of the program, unchanged afterwards.

        Returns new tensors, and an input itself where the module handed it back.

        Raises:
            GraphClosed: another thread has dropped the graph.
            KernelFailed: a kernel refused its input.
        """
        with ENGINE_LOCK:
            if not self._finalizer.alive:
                raise GraphClosed
            if self.store is not None:
                self.store.refresh()
            leaving = self._outputs.leave()
            self._graph.run(self._inputs.enter(tensors), [result for _, result, _ in leaving])
            return self._outputs.collect(tensors, leaving)

    def close(self) -> None:
        """Free the graph's memory now."""
        self._finalizer()


def _release(graph: Any, graph_id: int) -> None:
    """Free what a graph owns: first its C++ object, then the memory that this one used."""
    with ENGINE_LOCK:
        graph.destroy()
        engine.native().release_graph(graph_id)
        engine.native().drop_registers(graph.name)


def _bytes(node: torch.fx.Node) -> int:
    made = node.meta.get("val")
    return made.nbytes if isinstance(made, torch.Tensor) else 0
