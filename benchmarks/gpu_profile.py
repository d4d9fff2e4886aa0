"""Where the time of one call on a GPU goes, by kernel, and how long the arithmetic and the memory alone would take."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from . import common
from .gpu_device import Device, Event
from .profile import flops

if TYPE_CHECKING:
    from diffusers_oneflow.capture import Program
    from diffusers_oneflow.graph import Place

# In this order: a fused attention is called "flash_fprop", a convolution "implicit_gemm".
_CLASSES = {
    "attention": "sdpa|flash|fmha|attention",
    "convolution": "conv|fprop|wgrad|dgrad|winograd",
    "product": "gemm|gemv|nvjet|cublas|cutlass|matmul|addmm|::mm|splitk",
    "copy": "memcpy|memset|copy|nchwtonhwc|nhwctonchw",
}
_OPS = {"convolution": "conv|cudnn(?!_)", "product": "cublas|quack|linear|mm", "attention": "attention"}
_SHOWN = 20


def limits(device: Device, dtype: torch.dtype) -> dict[str, Any]:
    """What the device reaches: TFLOP/s of a large product in `dtype`, and GB/s of a copy, read and written bytes together."""
    gpu = device.place.type == "cuda"
    side, count = (8192, 1 << 30) if gpu else (64, 1 << 16)
    a, b = (torch.randn(side, side, device=device.place, dtype=dtype) for _ in range(2))
    source = torch.zeros(count, device=device.place, dtype=torch.uint8)
    target = torch.zeros_like(source)
    product = statistics.median(device.milliseconds(lambda: a @ b, 5) for _ in range(3))
    copy = statistics.median(device.milliseconds(lambda: target.copy_(source), 5) for _ in range(3))
    return {"tflop_per_second": 2 * side**3 / product / 1e9, "gb_per_second": 2 * count / copy / 1e6}


def start(device: Device) -> None:
    """Let what records kernels start."""
    device.events(lambda: torch.ones(8, device=device.place).add_(1))


@contextlib.contextmanager
def counted_ops() -> Iterator[list[dict[str, Any]]]:
    """Collect the steps of all graphs for a GPU that are built meanwhile: op, kernel, place, bytes and arithmetic of each."""
    from diffusers_oneflow.replay.graph import ReplayGraph

    found: list[dict[str, Any]] = []
    original = ReplayGraph.__init__

    def init(graph: ReplayGraph, program: Program, *args: Any, **kwargs: Any) -> None:
        original(graph, program, *args, **kwargs)
        found.extend(_ops(program, list(graph.places.values())))

    ReplayGraph.__init__ = init  # type: ignore[assignment,method-assign]  # put back below
    try:
        yield found
    finally:
        ReplayGraph.__init__ = original  # type: ignore[method-assign]  # as it was


def _ops(program: Program, places: list[Place]) -> list[dict[str, Any]]:
    """Each step with its arithmetic: that of the nodes for the same op in the same line of the module, in equal parts.

    Layers that are computed together have one step, in the line of the first: what has none is spread over all of that op.
    """
    from diffusers_oneflow.capture import op_name
    from diffusers_oneflow.provenance import where

    counted: dict[tuple[str, str], int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            operands = [getattr(a, "meta", {}).get("val") for a in node.args]
            key = op_name(node), where(node)
            counted[key] = counted.get(key, 0) + (flops(op_name(node), operands, node.meta.get("val")) or 0)
    heavy = [p for p in places if _of(p.kernel) in _OPS]
    steps = Counter((p.op, p.where) for p in heavy)
    shares = {id(p): counted.get((p.op, p.where), 0) / steps[p.op, p.where] for p in heavy}
    for op in {p.op for p in heavy}:
        total, given = sum(n for key, n in counted.items() if key[0] == op), sum(shares[id(p)] for p in heavy if p.op == op)
        shares |= {id(p): shares[id(p)] * total / given for p in heavy if p.op == op and given}
    return [
        {"op": p.op, "kernel": p.kernel, "where": p.where, "bytes": p.bytes, "flops": shares.get(id(p), 0)} for p in places
    ]  # fmt: skip


def profile(
    device: Device, step: Callable[[], object], ops: list[dict[str, Any]], reached: dict[str, Any], times: int = 3
) -> dict[str, Any]:
    """Kernels of the middle one of `times` calls.

    Args:
        ops: of this package's graph, by `counted_ops`; none for others.
        reached: `limits`.

    Returns:
        ``step_ms``, of calls one after the other; of the one that was recorded, which stands alone and so may run at a higher
        clock, ``busy_ms`` in which a kernel ran, and ``idle_ms`` between them; ``kernels``, a row for each name, the slowest
        first; ``classes``, a row for each kind with its floors in ms.
    """
    step()
    runs = sorted((device.events(step) for _ in range(times)), key=_busy)
    events = runs[times // 2]
    took = common.summarize([device.milliseconds(step, 5) for _ in range(5)])
    busy = _busy(events) / 1000
    span = (max(e.start + e.us for e in events) - events[0].start) / 1000 if events else 0.0
    rows: dict[str, dict[str, Any]] = {}
    for event in events:
        row = rows.setdefault(event.name, {"kernel": event.name, "class": kind(event.name), "count": 0, "us": 0.0})
        row["count"] += 1
        row["us"] += event.us
    kernels = sorted(rows.values(), key=lambda row: -row["us"])
    return {
        "step_ms": took,
        "busy_ms": busy,
        "idle_ms": span - busy,
        "kernels": kernels,
        "classes": _classes(kernels, ops, reached),
    }


def kind(kernel: str) -> str:
    """What a kernel does, by its name: "attention", "convolution", "product", "copy" or "other"."""
    return next((name for name, pattern in _CLASSES.items() if re.search(pattern, kernel.lower())), "other")


def _classes(kernels: list[dict[str, Any]], ops: list[dict[str, Any]], reached: dict[str, Any]) -> list[dict[str, Any]]:
    made = {name: {"class": name, "count": 0, "ms": 0.0} for name in (*_CLASSES, "other")}
    for row in kernels:
        made[row["class"]]["count"] += row["count"]
        made[row["class"]]["ms"] += row["us"] / 1000
    for name, row in made.items():
        same = [op for op in ops if _of(op["kernel"]) == name]
        arithmetic, memory = _floors(same, reached)
        row["flops"] = sum(op["flops"] for op in same)
        row["bytes"] = sum(op["bytes"] for op in same)
        row["arithmetic_ms"], row["memory_ms"] = sum(arithmetic), sum(memory)
        # An op is done when both its arithmetic and its traffic are.
        row["floor_ms"] = sum(map(max, arithmetic, memory))
    return list(made.values())


def _of(kernel: str) -> str:
    """The kind of kernel that a step of this package runs."""
    if kernel.endswith("copy"):
        return "copy"
    return next((name for name, pattern in _OPS.items() if re.search(pattern, kernel)), "other")


def _floors(ops: list[dict[str, Any]], reached: dict[str, Any]) -> tuple[list[float], list[float]]:
    arithmetic = [op["flops"] / reached["tflop_per_second"] / 1e9 for op in ops]
    return arithmetic, [op["bytes"] / reached["gb_per_second"] / 1e6 for op in ops]


def _busy(events: list[Event]) -> float:
    """Microseconds in which at least one of them ran."""
    total, until = 0.0, float("-inf")
    for event in events:
        end = event.start + event.us
        total += max(0.0, end - max(event.start, until))
        until = max(until, end)
    return total


def show(title: str, found: dict[str, Any]) -> None:
    """Print the table of the kinds, and that of the slowest kernels."""
    rows = [
        (row["class"], str(row["count"]), *(f"{row[k]:.3f}" for k in ("ms", "arithmetic_ms", "memory_ms", "floor_ms")))
        for row in found["classes"]
    ]
    rows.append(("(idle)", "", f"{found['idle_ms']:.3f}", "", "", ""))
    note = f"step {found['step_ms'].show(1, 3)} ms; in the one of the table kernels run for {found['busy_ms']:.3f} ms"
    common.table(title, ("kind", "kernels", "ms", "arithmetic ms", "memory ms", "floor ms"), rows, note)
    slowest = [(row["kernel"][:100], row["class"], str(row["count"]), f"{row['us']:.0f}") for row in found["kernels"][:_SHOWN]]
    common.table(f"{title}: the slowest of {len(found['kernels'])} kernels", ("kernel", "kind", "count", "us"), slowest)


def plotted(found: dict[str, Any]) -> dict[str, Any]:
    """The same as `plots.profile` takes it: a row for each of the slowest kernels, the others in one."""
    step, kernels = found["busy_ms"] + found["idle_ms"], found["kernels"]
    few = [(row["kernel"][:60], row["class"], row["count"], row["us"] / 1000) for row in kernels[:_SHOWN]]
    if rest := kernels[_SHOWN:]:
        few.append(("the others", "all kinds", sum(r["count"] for r in rest), sum(r["us"] for r in rest) / 1000))
    rows = [
        {"kernel": name, "op": what, "count": count, "ms": ms, "share": ms / step} for name, what, count, ms in few
    ]  # fmt: skip
    return {"kernels": rows, "rest_ms": found["idle_ms"], "call_ms": found["step_ms"]}
