"""What a benchmark asks a GPU for: its clock, its memory, graphs, and the kernels that ran. A CPU stands in for it in tests."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Event:
    """A kernel, or a copy, that ran: its name, when it began and how long it took, in microseconds."""

    name: str
    start: float
    us: float


@dataclass(frozen=True)
class Memory:
    """Bytes on the device.

    Attributes:
        allocated: of torch's tensors.
        reserved: that torch's allocator holds, with what graphs keep for themselves.
        used: that the driver has given to anybody, code of kernels and other allocators included.
    """

    allocated: int
    reserved: int
    used: int

    def __sub__(self, other: "Memory") -> "Memory":
        return Memory(self.allocated - other.allocated, self.reserved - other.reserved, self.used - other.used)


class Gpu:
    """The first NVIDIA GPU that torch sees."""

    place = torch.device("cuda")

    def describe(self) -> dict[str, Any]:
        """Its name and memory, and the versions of CUDA and cuDNN."""
        found = torch.cuda.get_device_properties(self.place)
        versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        return {"name": found.name, "memory_gib": round(found.total_memory / 2**30, 1), **versions}

    def load(self) -> None:
        """Let the libraries that all use load, at nobody's cost, with ops of sizes that no model has."""
        x = torch.ones(1, 24, 24, 24, device=self.place, dtype=torch.float16)
        torch.nn.functional.conv2d(x, torch.ones(24, 24, 3, 3, device=self.place, dtype=torch.float16))
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
        (x @ x).sum().item()

    def synchronize(self) -> None:
        """Wait until all is done."""
        torch.cuda.synchronize()

    def milliseconds(self, step: Step, times: int) -> float:
        """Of one of `times` calls in a row, on the GPU's own clock; one more comes before."""
        step()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            step()
        end.record()
        end.synchronize()
        took: float = start.elapsed_time(end)
        return took / times

    def compiled(self, function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        """`function` by torch.compile, for the sizes that it is called with."""
        return torch.compile(function, mode=mode, dynamic=False)

    def captured(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`step` as one CUDA graph; its result is always the same tensor."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = step()

        def replay(held: Step = step) -> torch.Tensor:  # the graph reads the step's tensors where they are
            graph.replay()
            return made

        return replay

    def memory(self) -> Memory:
        """What is taken now, after a rest: caches of torch's allocator are given back before."""
        self.rest()
        free, total = torch.cuda.mem_get_info()
        return Memory(torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total - free)

    def peak(self, step: Step) -> Memory:
        """The most that is taken while `step` runs twice, beside what was taken before."""
        self.rest()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step()
        torch.cuda.synchronize()
        # The allocator gives nothing back by itself, so what it and the driver have given out now is their peak.
        free, total = torch.cuda.mem_get_info()
        return Memory(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free)

    def most_allocated(self, step: Step) -> int:
        """Bytes of tensors at the peak of one call of `step`."""
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def rest(self) -> None:
        """Drop what nobody needs."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def events(self, step: Step) -> list[Event]:
        """All that ran on the GPU in one call of `step`, in order."""
        activities = [torch.profiler.ProfilerActivity.CUDA]
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as found:
            step()
            torch.cuda.synchronize()
        cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]  # there, if not exported
        # "Context Sync" and the like are waiting.
        events = [
            e for e in found.events() if e.device_type == cuda and not e.is_user_annotation and not e.name.endswith(" Sync")
        ]
        made = [Event(e.name, float(e.time_range.start), float(e.time_range.elapsed_us())) for e in events]
        return sorted(made, key=lambda e: e.start)


class Cpu:
    """Stands in for a GPU, so that a benchmark can be walked through without one; its figures mean nothing."""

    place = torch.device("cpu")

    def describe(self) -> dict[str, Any]:
        """That it is no GPU."""
        return {"name": "no GPU: a walk on the CPU"}

    def load(self) -> None:
        """They are loaded."""

    def synchronize(self) -> None:
        """Nothing runs behind."""

    def milliseconds(self, step: Step, times: int) -> float:
        """By the wall."""
        start = time.perf_counter()
        for _ in range(times):
            step()
        return 1000 * (time.perf_counter() - start) / times

    def compiled(self, function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        """Traced by torch.compile, and run as it was: inductor would take minutes."""
        return torch.compile(function, backend="eager", dynamic=False)

    def captured(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """`step` itself."""
        return step

    def memory(self) -> Memory:
        """Nothing."""
        return Memory(0, 0, 0)

    def peak(self, step: Step) -> Memory:
        """Numbers that are not 0, so that they can be divided."""
        step()
        return Memory(1 << 20, 2 << 20, 3 << 20)

    def most_allocated(self, step: Step) -> int:
        """Likewise."""
        step()
        return 1 << 20

    def rest(self) -> None:
        """Drop what nobody needs."""
        gc.collect()

    def events(self, step: Step) -> list[Event]:
        """Torch's ops, and those of OneFlow are not seen."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            step()
        made = [Event(e.name, float(e.time_range.start), float(e.time_range.elapsed_us())) for e in found.events()]
        return sorted(made, key=lambda e: e.start)


Device = Gpu | Cpu
