"""What OneFlow runs of a pipeline, and what it does not, with reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .backend import dispatcher_of, models
from .dispatch import Dispatcher
from .entries import Entry


@dataclass
class GraphReport:
    """One compiled graph.

    Attributes:
        inputs: shape and dtype of each input.
        ops: ATen op -> number of nodes after the passes.
        rewrites: pass -> how often it was applied.
        near_misses: "pass: op in place: reason".
        seconds: capture, passes, lowering, compiling.
        activation_bytes: of the arena that all graphs share.
        unplanned_bytes: the same without reuse of memory.
        owned_bytes: inputs, outputs and control, this graph's alone.
        calls: how often it ran.
        kernels: ATen op -> kernel -> number of nodes; "OneFlow's own" for what the pack has no kernel for.
        hoisted: for each part that depends on some inputs only, its nodes and how often it ran.
        origin: where its program came from: "captured", "captured anew for these sizes", or "disk cache".
    """

    inputs: list[str]
    ops: dict[str, int]
    rewrites: dict[str, int]
    near_misses: list[str]
    seconds: dict[str, float]
    activation_bytes: int
    unplanned_bytes: int
    owned_bytes: int
    calls: int
    kernels: dict[str, dict[str, int]]
    hoisted: list[tuple[int, int]]
    origin: str = "captured"


@dataclass
class ComponentReport:
    """One model of the pipeline.

    Attributes:
        weight_bytes: parameters and buffers, shared with torch.
        packed_bytes: packed copies of weights, beside torch's own.
        released_bytes: of torch's own, those that are not in memory.
        fallbacks: reason -> calls that ran in torch for it.
        built: graphs compiled in all, dropped ones included.
        part: a part of a model that runs in torch.
        parts: what of a model that runs in torch runs on OneFlow nevertheless.
    """

    weight_bytes: int
    graphs: list[GraphReport] = field(default_factory=list)
    fallbacks: dict[str, int] = field(default_factory=dict)
    built: int = 0
    packed_bytes: int = 0
    released_bytes: int = 0
    part: bool = False
    parts: str = ""


class Explanation(dict[str, "ComponentReport"]):
    """Component path -> `ComponentReport`; prints as a table."""

    @property
    def fallbacks(self) -> int:
        """Calls of all components that ran in torch; those of parts are within them."""
        return sum(sum(c.fallbacks.values()) for c in self.values() if not c.part)

    def print(self, console: Console | None = None) -> None:
        """Print a table of the graphs, then of each its stages, nodes, rewrites and near misses, then the fallbacks."""
        console = console or Console()
        table = Table(title="OneFlow graphs")
        for column in ("component", "inputs", "calls", "nodes", "compiled", "activations", "weights"):
            text = column in ("component", "inputs")
            table.add_column(column, justify="left" if text else "right", no_wrap=not text)
        details = []
        for path, component in self.items():
            weights = _megabytes(component.weight_bytes)
            if component.packed_bytes:
                weights += f" + {_megabytes(component.packed_bytes)} packed"
            if component.released_bytes:
                weights += f" - {_megabytes(component.released_bytes)} released"
            for graph in component.graphs:
                table.add_row(path, *_row(graph), weights)
                details += _details(path, graph)
            if not component.graphs and not component.part:
                table.add_row(path, "(no graph yet)", "0", "", "", "", weights)
        console.print(table)
        for line in details:
            console.print(line, markup=False, highlight=False)
        for path, component in self.items():
            for reason, calls in component.fallbacks.items():
                parts = f" ({component.parts})" if component.parts else ""
                console.print(f"{path}: {calls} calls ran in torch{parts}: {reason}", markup=False, highlight=False)
        console.print(f"{self.fallbacks} fallbacks", markup=False)

    def ops(self) -> dict[str, int]:
        """ATen op -> nodes in all graphs together."""
        total: dict[str, int] = {}
        for component in self.values():
            for graph in component.graphs:
                for op, count in graph.ops.items():
                    total[op] = total.get(op, 0) + count
        return dict(sorted(total.items(), key=lambda item: -item[1]))


def explain(pipe: Any, show: bool = True) -> Explanation:
    """What OneFlow does for a pipeline or a single module; printed as a table unless `show` is False.

    Returns:
        A dictionary of each model's path (``unet``, ``vae.decoder``) to a `ComponentReport`: its graphs with nodes, kernels,
        seconds by stage and bytes, and how many calls ran in torch, by reason; `fallbacks` is their sum over all.

    Raises:
        ValueError: nothing of it is attached.
    """
    report = Explanation()
    for path, module in models(pipe).items():
        dispatcher = dispatcher_of(module)
        if dispatcher is None:
            continue
        report[path] = _component(dispatcher)
        if dispatcher.parts is not None:
            report.update({part.path: _component(part) for part in dispatcher.parts.all()})
    if not report:
        raise ValueError(f'{type(pipe).__name__} is not attached to OneFlow: call .to(backend="oneflow") first')
    if show:
        report.print()
    return report


def _component(dispatcher: Dispatcher) -> ComponentReport:
    module: Any = dispatcher.module
    weights = {w.data_ptr(): w.nbytes for w in (*module.parameters(), *module.buffers())}
    return ComponentReport(
        sum(weights.values()),
        [_graph(entry) for entry in dispatcher.entries],
        dict(dispatcher.record.fallbacks),
        dispatcher.record.built,
        dispatcher.packed_bytes,
        dispatcher.released_bytes,
        dispatcher.part,
        str(dispatcher.parts) if dispatcher.parts is not None else "",
    )


def _graph(entry: Entry) -> GraphReport:
    memory = entry.graph.memory
    return GraphReport(
        inputs=entry.shapes,
        ops=entry.ops,
        rewrites={r.name: r.applied for r in entry.rewrites},
        near_misses=[f"{r.name}: {miss}" for r in entry.rewrites for miss in r.near_misses],
        seconds=entry.seconds,
        activation_bytes=memory.activations,
        unplanned_bytes=memory.unplanned,
        owned_bytes=memory.owned,
        calls=entry.calls,
        kernels={op: dict(counts) for op, counts in entry.graph.kernels.items()},
        hoisted=[(sum(sum(c.values()) for c in part.graph.kernels.values()), part.runs) for part in entry.hoisted],
        origin=entry.origin,
    )


def _row(graph: GraphReport) -> tuple[str, ...]:
    return (
        "\n".join(graph.inputs),
        str(graph.calls),
        str(sum(graph.ops.values())),
        f"{sum(graph.seconds.values()):.1f} s",
        _megabytes(graph.activation_bytes + graph.owned_bytes),
    )


def _details(path: str, graph: GraphReport) -> list[str]:
    """Lines on one graph, of which the table has only sums."""
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in graph.seconds.items())
    ops = ", ".join(f"{op} {count}" for op, count in sorted(graph.ops.items(), key=lambda item: -item[1]))
    rewrites = ", ".join(f"{name} {count}" for name, count in graph.rewrites.items() if count) or "none"
    memory = f"{_megabytes(graph.activation_bytes)} of the shared arena ({_megabytes(graph.unplanned_bytes)} without reuse)"
    misses = [f"  near miss, {count} times: {miss}" for miss, count in Counter(graph.near_misses).items()]
    return [
        f"{path} {', '.join(graph.inputs)}",
        f"  program: {graph.origin}",
        f"  compiled: {stages}",
        f"  memory: {memory}, {_megabytes(graph.owned_bytes)} its own",
        f"  nodes: {ops}",
        f"  kernels: {_kernels(graph)}",
        f"  rewrites: {rewrites}",
        *(f"  hoisted: {nodes} nodes, ran {runs} times" for nodes, runs in graph.hoisted),
        *misses,
    ]


def _kernels(graph: GraphReport) -> str:
    """Kernel -> nodes of all ops, the most frequent first; torch's libraries are named."""
    total: Counter[str] = Counter()
    for counts in graph.kernels.values():
        total.update(counts)
    return ", ".join(f"{kernel}{_LIBRARIES.get(kernel, '')} {count}" for kernel, count in total.most_common())


# The kernels that call into torch's libraries, by its C interface.
_LIBRARIES = {
    "dfo_onednn_convolution": " (torch: oneDNN)",
    "dfo_onednn_linear": " (torch: oneDNN)",
    "dfo_flash_attention": " (torch: flash attention)",
}


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.1f} MB"
