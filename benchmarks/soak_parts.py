"""The parts of the soak test; each runs in a child process and checks every result it gets.

Nothing heavy is imported here: the child decides what comes first.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from . import common

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAMPLES = 200
# Images are compared as bytes: what a user sees of a difference.
_IMAGE_TOLERANCE = 1


@dataclass(frozen=True)
class Plan:
    """How much a part does.

    Args:
        count: calls or images; for "threads", the seconds.
        sleep: seconds between calls.
        steps: steps of an image.
        size: its height and width in pixels.
        seeds: different images or inputs that the part goes through again and again.
        import_first: import oneflow before this package, as a user's script may.
        fault: "wrong" falsifies one result, "crash" kills the process half way: does the soak notice?
    """

    count: int
    sleep: float = 0.0
    steps: int = 4
    size: int = 128
    seeds: int = 8
    import_first: bool = False
    fault: str | None = None


class Tally:
    """Counts results and wrong ones, samples resident memory, and tells the parent how far it is.

    Args:
        channel: to the parent.
        plan: what the part does.
        goal: results after which it is done; None if it runs by time.
    """

    def __init__(self, channel: Connection, plan: Plan, goal: int | None) -> None:
        self.done, self.wrong, self.first_wrong = 0, 0, ""
        self.resident: list[int] = []
        self._channel, self._plan = channel, plan
        self._every = max(1, goal // _SAMPLES) if goal else 1
        self._half = goal // 2 if goal else 2
        self._lock = threading.Lock()

    def add(self, complaint: str | None) -> None:
        """Count one result; `complaint` says what is wrong with it."""
        with self._lock:
            self.done += 1
            if self.done == self._half and self._plan.fault:
                complaint = self._fault()
            if complaint:
                self.wrong += 1
                self.first_wrong = self.first_wrong or f"result {self.done}: {complaint}"
            if self.done % self._every == 0:
                self.resident.append(common.resident_bytes())
                self._channel.send(("progress", (self.done, self.wrong)))

    def missing(self, count: int) -> None:
        """Count results as wrong that are right but were not made by OneFlow."""
        if count:
            self.wrong += count
            self.first_wrong = self.first_wrong or f"{count} results were not made by OneFlow"

    def _fault(self) -> str:
        if self._plan.fault == "crash":
            import os
            import signal

            self._channel.send(("progress", (self.done, self.wrong)))
            os.kill(os.getpid(), signal.SIGSEGV)
        return "planted"

    def result(self, seconds: float) -> dict[str, Any]:
        """What the part reports."""
        return {
            "done": self.done,
            "wrong": self.wrong,
            "first_wrong": self.first_wrong,
            "seconds": seconds,
            "resident_bytes": self.resident,
        }


def calls(channel: Connection, plan: Plan) -> dict[str, Any]:
    """Calls of a compiled module of one op, against products that torch computed before."""
    _imports(plan)
    import torch

    import diffusers_oneflow

    class Product(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a * b

    generator = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(16, 16, generator=generator), torch.randn(16, 16, generator=generator)) for _ in range(plan.seeds)]
    module: torch.nn.Module = Product().eval()
    expected = [module(a, b) for a, b in inputs]
    module = diffusers_oneflow.compile(module, diffusers_oneflow.OneFlowConfig(fallback="error", progress=False))
    tally = Tally(channel, plan, plan.count)
    start = time.perf_counter()
    with torch.no_grad():
        for number in range(plan.count):
            which = number % plan.seeds
            same = torch.equal(module(*inputs[which]), expected[which])
            tally.add(None if same else f"input {which} gives another product")
            if plan.sleep:
                time.sleep(plan.sleep)
    tally.missing(plan.count - _graph_calls(module)["Product"])
    return tally.result(time.perf_counter() - start)


def images(channel: Connection, plan: Plan) -> dict[str, Any]:
    """Images of the demo pipeline: within one of 255 of torch's, and always the same bits for a seed."""
    _imports(plan)
    drawer = _Drawer(plan, 0)
    tally = Tally(channel, plan, plan.count)
    start = time.perf_counter()
    for _ in range(plan.count):
        tally.add(drawer.draw())
    return tally.result(time.perf_counter() - start)


def threads(channel: Connection, plan: Plan, number: int = 2) -> dict[str, Any]:
    """`number` threads with a demo pipeline each, for ``plan.count`` seconds; the same checks as `images`.

    Torch's images are drawn before; the threads build their graphs at the same time, and draw at least two
    images each, so that one is compared with the first.
    """
    _imports(plan)
    drawers = [_Drawer(plan, offset) for offset in range(number)]
    tally = Tally(channel, plan, None)
    start = time.perf_counter()

    def work(drawer: _Drawer) -> None:
        try:
            while drawer.drawn <= plan.seeds or time.perf_counter() - start < plan.count:
                tally.add(drawer.draw())
        except Exception as error:
            tally.add(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(drawer,)) for drawer in drawers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return tally.result(time.perf_counter() - start)


class _Drawer:
    """Draws images on OneFlow with a demo pipeline of its own, seed after seed, and checks each."""

    def __init__(self, plan: Plan, offset: int) -> None:
        import diffusers_oneflow

        from . import models

        self._pipe = models.demo_pipeline()
        self._image: Callable[[int], NDArray[Any]] = lambda seed: models.image(self._pipe, plan.steps, seed, plan.size)
        self._seeds = [1000 * offset + i for i in range(plan.seeds)]
        self._expected = {seed: self._image(seed) for seed in self._seeds}
        self._steps, self.drawn = plan.steps, 0
        self._first: dict[int, NDArray[Any]] = {}
        self._pipe.to(backend="oneflow", backend_config=diffusers_oneflow.OneFlowConfig(fallback="error", progress=False))

    def draw(self) -> str | None:
        """Draw the next image; what is wrong with it, or None."""
        import numpy

        seed = self._seeds[self.drawn % len(self._seeds)]
        before = _graph_calls(self._pipe)
        drawn = self._image(seed)
        self.drawn += 1
        after = _graph_calls(self._pipe)
        for path, least in (("text_encoder", 1), ("unet", self._steps), ("vae.decoder", 1)):
            if (ran := after[path] - before[path]) < least:
                return f"seed {seed}: {path} ran {ran} times on OneFlow, not {least}"
        first = self._first.setdefault(seed, drawn)
        off = int(abs(_bytes(drawn) - _bytes(self._expected[seed])).max())
        if not numpy.array_equal(drawn, first):
            return f"seed {seed} differs from its first image by {abs(drawn - first).max():.1e}, from torch's by {off} of 255"
        return f"seed {seed} is {off} of 255 from torch's image" if off > _IMAGE_TOLERANCE else None


def _bytes(image: NDArray[Any]) -> NDArray[Any]:
    made: NDArray[Any] = (image * 255).round().astype("int16")
    return made


def _graph_calls(attached: Any) -> dict[str, int]:
    """Component -> how often its graphs ran: torch would give the right result as well."""
    import diffusers_oneflow

    report = diffusers_oneflow.explain(attached, show=False)
    return {path: sum(graph.calls for graph in component.graphs) for path, component in report.items()}


def _imports(plan: Plan) -> None:
    """Import oneflow first, with the start-up lines that it then prints, or leave it to this package."""
    if plan.import_first:
        importlib.import_module("oneflow")


PARTS: dict[str, Callable[..., Any]] = {"calls-sleep": calls, "calls": calls, "images": images, "threads": threads}
