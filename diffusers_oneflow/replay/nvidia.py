"""NVIDIA GPUs as devices on which graphs are replayed; nothing of Triton's is imported before one is used."""

import contextlib
import functools
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..config import OneFlowConfig
from .device import Plain, Preparations

# Code of the kernels of a graph, and of what is measured for it: 176 MB for Stable Diffusion's UNet on an H200.
_CODE_BYTES = 256 << 20


class Cuda(Plain):
    """An NVIDIA GPU: kernels of this package and of the libraries that torch loads, in one CUDA graph."""

    def __init__(self, device: torch.device | str) -> None:
        super().__init__(device)
        self._awake = False
        self._last: torch.cuda.Event | None = None

    def find(self, op: str) -> Callable[..., Any] | None:
        """The lowering in `replay.cuda`, if there is one."""
        from . import cuda

        return cuda.TABLE.get(op)

    def wake(self) -> None:
        """Load Triton, and let it compile what its first kernel needs, in a thread: that takes 1.5 seconds.

        Beside that a process imports flash attention 4 and quack, where they are installed.
        """
        from .cuda import cute_ahead, flash

        def load() -> None:
            with contextlib.suppress(Exception):  # it fails again where it is needed, and says so
                from .cuda import memsets

                with torch.cuda.device(self.torch):
                    memsets.load()

        if flash.able(self.torch):
            cute_ahead.start(self.torch)
        if not self._awake:
            self._awake = True
            threading.Thread(target=load, name="diffusers_oneflow loads Triton").start()

    def require(self, size: int) -> None:
        """From what the driver has left, since libraries that find no room for their code may end the process."""
        kept = torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch)
        free = torch.cuda.mem_get_info(self.torch)[0]
        if free < _CODE_BYTES:
            torch.cuda.empty_cache()
            kept, free = 0, torch.cuda.mem_get_info(self.torch)[0]
        if free < _CODE_BYTES or free + kept < size + _CODE_BYTES:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. A graph of {size >> 20} MiB, with {_CODE_BYTES >> 20} MiB for the code of its kernels,"
                f" is to be built on {self.torch}, where {free + kept >> 20} MiB are free: free some, or keep the model in torch"
            )

    def capture(
        self, run: Callable[[], None], preparations: Preparations = (), here: Preparations = (), kernels: Preparations = ()
    ) -> Callable[[], None]:
        """Run once, measure what has several ways, and capture. Raises `torch.OutOfMemoryError` where memory is short."""
        from .cuda import choice, cute_ahead, driver

        # Runs of other graphs that are still under way have the same scratch memory.
        torch.cuda.synchronize(self.torch)
        self._prepare(preparations, here, kernels)
        # Graphs that are measured share memory, each with the one before, which is there until it is recorded.
        last: list[torch.cuda.CUDAGraph] = []

        def record() -> Callable[[], None]:
            last[:] = [self._recorded(run, last[0].pool() if last else None)]
            return last[0].replay

        with torch.cuda.device(self.torch), choice.measuring(self.torch.index or 0) as session:
            # One for all of it, since cuBLAS takes scratch memory on each stream.
            stream = driver.stream(self.torch, 0)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                cute_ahead.twice(self.torch, run, self._load)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            session.settle(record)
            last.clear()  # in memory of its own, without what other ways took
            return record()

    def _recorded(self, run: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
        """A graph of what `run` does.

        Args:
            pool: the memory of another graph, to be shared.
        """
        from .cuda import driver, memsets

        graph, pool = torch.cuda.CUDAGraph(keep_graph=True), pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self.torch)
        torch.cuda.empty_cache()
        with torch.cuda.stream(driver.stream(self.torch, 0)):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # that this fails too says nothing more
                    self._end(graph, pool)
                raise
            self._end(graph, pool)
        memsets.replace(graph, self.torch)
        graph.instantiate()
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """End a capture. Where that raises torch would go on to allocate for it, in this memory."""
        try:
            graph.capture_end()
        except RuntimeError:
            index = self.torch.index or 0
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
            raise

    def _prepare(self, preparations: Preparations, here: Preparations, kernels: Preparations) -> None:
        """cuDNN compiles in several threads at once, Triton in processes: after each other they would take most of a build.

        So do flash attention 4 and quack, where their process was started: it is asked, and what finds their kernels is imported
        here meanwhile, in a thread: this one compiles cuDNN's attention, without Python's lock.
        """
        from .cuda import ahead, cute_ahead, flash

        def one(prepare: Callable[[], object]) -> None:
            # What fails here fails again when it is run, and says so.
            with torch.cuda.device(self.torch), torch.inference_mode(False), torch.no_grad(), contextlib.suppress(Exception):
                prepare()

        with torch.cuda.device(self.torch), torch.inference_mode(False), torch.no_grad():
            wait = ahead.compile_ahead(kernels)
        caches = cute_ahead.caches() if flash.able(self.torch) else contextlib.nullcontext()
        with caches, ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(min(8, ahead.cores())) as pool:
            others = pool.map(one, preparations)
            calls = [functools.partial(one, prepare) for prepare in here]
            cute_ahead.ask(self.torch, calls, lambda name: loader.submit(self._load, {name}))
            wait()
            list(others)
            list(pool.map(one, kernels))
        torch.cuda.synchronize(self.torch)

    def _load(self, asked: set[str]) -> None:
        """Import the packages whose kernels another process compiles, by the names that it is asked for."""
        from .cuda import flash, quack

        if "quack.multiply" in asked:
            quack.usable(self.torch)
        elif asked:
            flash.function()

    def aside(self, work: Callable[[], None]) -> Callable[[], None]:
        """On another stream, a branch of the CUDA graph."""
        from .cuda import driver, memory

        side = driver.stream(self.torch, 1)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), memory.lane(1):
            work()
        done = side.record_event()
        return lambda: torch.cuda.current_stream().wait_event(done)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """On the caller's stream, as any op of torch's, and after the run before, which may have been on another stream."""
        with torch.cuda.device(self.torch):
            stream = torch.cuda.current_stream()
            if self._last is not None:
                stream.wait_event(self._last)
            yield
            self._last = stream.record_event(self._last)

    def finish(self) -> None:
        """Wait for the last run, which came after all others."""
        if self._last is not None:
            self._last.synchronize()


def refusal(device: torch.device, config: OneFlowConfig) -> str | None:
    """Why a model on this GPU stays in torch."""
    if not config.cuda:
        return f"a model on {device}, and graphs there are switched off by OneFlowConfig(cuda=False)"
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (7, 0):
        return f"a model on {device}: Triton compiles for NVIDIA GPUs of compute capability 7.0 and later"
    if importlib.util.find_spec("triton") is None:
        return f"a model on {device}, and Triton is not installed: pip install triton"
    if not (os.environ.get("CC") or any(map(shutil.which, ("clang", "gcc")))):
        return f"a model on {device}, and there is no C compiler, with which Triton makes what loads its kernels: install gcc"
    return None


def libraries() -> str:
    """What computes on an NVIDIA GPU here, and in whose place torch's own ops do."""
    from .cuda import cublaslt, cudnn, flash, quack

    found = []
    for name, load, instead in (
        ("cuBLASLt", cublaslt.library, "torch's products"),
        ("cuDNN", cudnn.library, "torch's convolutions"),
    ):
        try:
            load()
            found.append(name)
        except (OSError, TypeError):  # not there, or a torch without it
            found.append(f"{instead} ({name} does not load)")
    more = {"flash attention 4": flash, "quack's products": quack}
    there = [name for name, module in more.items() if module.usable(torch.device("cuda"))]
    return ", ".join([*found, "torch's attention", *there, "Triton"])
