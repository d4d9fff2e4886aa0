"""Where OneFlow puts the results of a program's steps: an nn.Graph of ops that only write down their buffers."""

import functools
import itertools
import time
from dataclasses import dataclass
from typing import Any

import torch

from .. import engine, interop
from ..errors import OneFlowError
from ..flow_graph import ENGINE_LOCK, chain, graph_class
from ..kernels import loader
from ..progress import Stage
from .values import Ref, Step

_KIND = "dfo_recorded"
_ids = itertools.count(1 << 32)


@dataclass(frozen=True)
class Plan:
    """The memory of a graph.

    Attributes:
        offsets: of each step's result, in bytes.
        bytes: that all results take together; steps that never live at the same time share them.
        unplanned: what they would take without that.
        seconds: by stage.
    """

    offsets: list[int]
    bytes: int
    unplanned: int
    seconds: dict[str, float]


def make(steps: list[Step], inputs: list[torch.Tensor], outputs: list[Ref], stage: Stage) -> Plan:
    """Let OneFlow compile the steps, and run its graph once to see where it has put them.

    Args:
        steps: in order. Those that others of a graph have computed before are not among them, and have memory of their own.
        inputs: meta tensors, of which shape and dtype count.
        outputs: what is read after the last step.
        stage: called with ("lowering" | "compiling", fraction done).

    Raises:
        OneFlowError: OneFlow refuses the graph, or has run other steps than these.
    """
    with ENGINE_LOCK:
        return _make(steps, inputs, outputs, stage)


def _make(steps: list[Step], inputs: list[torch.Tensor], outputs: list[Ref], stage: Stage) -> Plan:
    native, pack = engine.native(), loader.pack()
    number = next(_ids)
    planned = set(steps)
    read = list(dict.fromkeys(ref.source for ref in outputs if isinstance(ref.source, Step) and ref.source in planned))
    # On the CPU: nothing is computed there, and no memory is touched but for the inputs and the outputs.
    entering = [interop.to_flow(torch.zeros(t.shape, dtype=t.dtype)) for t in inputs]
    graph = graph_class()(functools.partial(_build, steps, read, stage))
    start = time.perf_counter()
    try:
        try:
            graph.build_graph(*entering)
            chain(graph)
            lowered = time.perf_counter()
            stage("compiling", 0.0)
            native.begin_graph(number)
            try:
                graph.finish()
            finally:
                report = native.end_graph()
        finally:
            # Also of a build that failed: a later one would end the process.
            native.drop_leftovers(graph.name)
        leaving = [interop.to_flow(torch.empty(step.planned, dtype=step.like.dtype)) for step in read]
        pack.take_records()
        graph.run(entering, leaving)
        records = pack.take_records()
    finally:
        graph.destroy()
        native.release_graph(number)
        native.drop_registers(graph.name)
    if [record[0] for record in records] != [step.number for step in steps]:
        raise OneFlowError("OneFlow ran other steps than those of the program: please report this")
    addresses = [record[2] for record in records]
    base = min(addresses)
    size = max(a - base + step.planned.numel() * step.like.itemsize for a, step in zip(addresses, steps))
    if size > report["planned"]:
        raise OneFlowError(f"OneFlow's plan has {report['planned']} bytes, and the steps lie in {size}: please report this")
    stage("compiling", 1.0)
    seconds = {"lowering": lowered - start, "compiling": time.perf_counter() - lowered}
    return Plan([a - base for a in addresses], size, report["unplanned"], seconds)


def _build(steps: list[Step], read: list[Step], stage: Stage, entering: tuple[Any, ...]) -> tuple[Any, ...]:
    """The body of nn.Graph.build: an op for each step, with the steps that it reads as its inputs."""
    from ..kernels.node import made, node

    values: dict[Step, Any] = {}
    for position, step in enumerate(steps):
        if position % 64 == 0:
            stage("lowering", position / len(steps))
        sources = dict.fromkeys(step.sources)
        given = [entering[s] if isinstance(s, int) else values[s] for s in sources if isinstance(s, int) or s in values]
        dtype = torch.uint8 if step.like.dtype == torch.bool else step.like.dtype
        # What reads nothing (constants) still needs its place in the graph.
        values[step] = node(_KIND, given or [entering[0]], step.planned, dtype, step.number)
    made.clear()
    return tuple(values[step] for step in read)
