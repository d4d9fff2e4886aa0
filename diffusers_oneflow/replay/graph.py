"""A program on a device, planned by OneFlow and captured there once."""

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable

import torch

from ..capture import Program
from ..errors import Unsupported, first_line
from ..graph import GraphClosed, Memory, Place
from ..interop import real
from ..ports import is_read
from ..progress import Stage
from . import early, plan
from .device import Device
from .lowering import Lowered
from .values import Ref, Step, map_refs, meta, refs

# Graphs of one device share what libraries allocate while they are captured, so no two run at once.
_LOCK = threading.RLock()


class ReplayGraph:
    """What `graph.CompiledGraph` is on the CPU.

    Args:
        program: what to run, after the passes for the kernel pack.
        weights: placeholder name -> tensor on the device, of parameters and constants; read where they are in every call.
        examples: one tensor per input of the program, for shapes and dtypes.
        device: where.
        stage: called with ("lowering" | "compiling", fraction done).

    Attributes:
        device, memory, seconds, kernels, places: as those of `CompiledGraph`.

    Raises:
        Unsupported: an op that has no lowering.
        torch.OutOfMemoryError: there is no room for the activations; nothing is kept.
    """

    store = None

    def __init__(
        self, program: Program, weights: dict[str, torch.Tensor], examples: list[torch.Tensor], device: Device,
        stage: Stage = lambda name, done: None,
    ) -> None:  # fmt: skip
        self._device, self._program, self.device = device, program, device.torch
        examples = list(map(real, examples))
        self._positions = [i for i, name in enumerate(program.inputs) if is_read(program, name)]
        # Not tensors of inference mode, which could not be written to outside it.
        with torch.inference_mode(False):
            self._inputs = [torch.empty(examples[i].shape, dtype=examples[i].dtype, device=device.torch) for i in self._positions]
        names = [program.inputs[i] for i in self._positions]
        lowered = Lowered(program, weights, dict(zip(names, map(meta, self._inputs))), device)
        if not lowered.steps or not self._inputs:
            raise Unsupported("a graph", "no output depends on an input tensor")
        self.steps = lowered.steps
        self._sources = self._sort_outputs(lowered)
        made = [ref for ref in self._sources if isinstance(ref, Ref)]
        on_cpu = program.on_cpu or [False] * len(self._sources)
        self._on_cpu = [there for there, source in zip(on_cpu, self._sources) if isinstance(source, Ref)]
        self._groups, self._rest = early.split(self.steps, 0 if self._positions[0] == 0 else None)
        self.plan = plan.make(self._rest, [meta(t) for t in self._inputs], made, stage)
        device.require(self.plan.bytes + sum(ref.like.nbytes for ref in made))
        start = time.perf_counter()
        with _LOCK, torch.inference_mode(False), torch.no_grad():
            self._prepare(made, [examples[i] for i in self._positions])
        self.seconds = {**self.plan.seconds, "kernels": time.perf_counter() - start}
        self.kernels = _count(self.steps)
        self.places = {f"step {s.number}": Place(s.op, _kernel(s), s.where, _bytes(s)) for s in self.steps}
        apart = [s.like for group in self._groups for s in group.steps] + [s.like for s in self.steps if s.own]
        owned = sum(t.nbytes for t in (*self._inputs, *self._made, *apart))
        self.memory = Memory(self.plan.bytes, self.plan.unplanned, owned + self.plan.bytes)

    def _prepare(self, made: list[Ref], examples: list[torch.Tensor]) -> None:
        self._arena = torch.empty(self.plan.bytes, dtype=torch.uint8, device=self._device.torch)
        places = {step: self._place(step.like, offset) for step, offset in zip(self._rest, self.plan.offsets) if not step.own}
        self._outs = [places[s] if s in places else self._apart(s) for s in self.steps]
        self._made = [torch.empty(ref.shape, dtype=ref.dtype, device=self._device.torch) for ref in made]
        last = _last_uses([s for g in self._groups for s in g.steps] + self._rest, made)

        def compute(step: Step) -> None:
            try:
                result = step.run(self._outs[step.number], *map_refs(step.args, self._read))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # what waits for a GPU, for one, cannot be captured
                raise Unsupported(
                    step.op, f"{_kernel(step)} cannot be part of a graph on {self.device}: {first_line(error)}", step.where
                ) from error
            if step.own:
                self._outs[step.number] = result
            for finished in last.get(step, ()):
                self._outs[finished.number] = None

        def together(group: early.Group) -> None:
            for step in group.steps:
                compute(step)

        def run() -> None:
            waits = [(g.first_use, self._device.aside(functools.partial(together, g))) for g in self._groups]
            for step in self._rest:
                for first_use, wait in waits:
                    if first_use == step.number:
                        wait()
                compute(step)
            for _, wait in waits:
                wait()
            for mine, ref in zip(self._made, made):
                mine.copy_(self._read(ref))

        self._enter(examples)
        self._replay: Callable[[], None] | None = self._device.capture(run, *self._preparations())

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run on tensors of any strides, one per input of the program, unchanged afterwards; returns new ones.

        Raises:
            GraphClosed: another thread has dropped the graph.
        """
        with _LOCK, torch.no_grad():
            if self._replay is None:
                raise GraphClosed
            given = [real(tensors[i]) for i in self._positions]
            with self._device.turn():
                self._enter(given)
                self._replay()
                fresh = iter([t.to("cpu", copy=True) if there else t.clone() for t, there in zip(self._made, self._on_cpu)])
        return [tensors[s] if isinstance(s, int) else next(fresh) for s in self._sources]

    def close(self) -> None:
        """Free the graph's memory now."""
        with _LOCK:
            if self._replay is not None:
                self._device.finish()
            self._replay = None
            self._arena = torch.empty(0)
            self._outs, self._made, self._inputs, self.steps, self._groups, self._rest = [], [], [], [], [], []

    def _enter(self, tensors: list[torch.Tensor]) -> None:
        for mine, tensor in zip(self._inputs, tensors):
            # From pinned memory it would not wait, and the caller may write there again.
            mine.copy_(tensor.detach(), non_blocking=tensor.is_cuda)

    def _preparations(self) -> tuple[list[Callable[[], object]], ...]:
        """One for each kind of step that has something to compile: for any thread, for this one, and of Triton's alone.

        A step may have both: `prepare` for the libraries, `kernels` for Triton's. One of Triton's alone is the latter itself.
        """
        kinds: dict[object, Callable[[], object]] = {}
        here: dict[object, Callable[[], object]] = {}
        kernels: dict[object, Callable[[], object]] = {}
        for step in self.steps:
            prepare = getattr(step.run, "prepare", None)
            written = step.run if step.kernel.startswith("triton") and prepare is None else None
            launch = getattr(step.run, "kernels", written)
            if (prepare is None and launch is None) or any(isinstance(source, Step) and source.own for source in step.sources):
                continue
            shapes = [(tuple(r.shape), r.like.stride(), r.dtype) for r in refs(step.args)]
            kind = (step.op, step.kernel, getattr(step.run, "kind", None), tuple(step.like.shape), *shapes)
            args = (self._outs[step.number], *map_refs(step.args, self._read))
            if prepare is not None:
                mine = here if getattr(step.run, "prepared_here", False) else kinds
                mine.setdefault(kind, functools.partial(prepare, *args))
            if launch is not None:
                kernels.setdefault(kind, functools.partial(launch, *args))
        return tuple(list(found.values()) for found in (kinds, here, kernels))

    def _apart(self, step: Step) -> torch.Tensor | None:
        """Of steps that are not planned: their own, or what they bring."""
        return None if step.own else torch.empty(step.like.shape, dtype=step.like.dtype, device=self._device.torch)

    def _place(self, like: torch.Tensor, offset: int) -> torch.Tensor:
        return self._arena[offset : offset + like.nbytes].view(like.dtype).view(like.shape)

    def _read(self, ref: Ref) -> torch.Tensor:
        source = ref.source
        if isinstance(source, torch.Tensor):
            return ref.of(source)
        tensor = self._inputs[source] if isinstance(source, int) else self._outs[source.number]
        assert tensor is not None  # what a step brings is there until its last use
        return ref.of(tensor)

    def _sort_outputs(self, lowered: Lowered) -> list[Ref | int]:
        """Per output of the program a `Ref` for what is computed, or the number of the input that is handed back."""
        index = {name: i for i, name in enumerate(self._program.inputs)}
        return [index[n.name] if n.name in index else lowered.outputs[n] for n in self._program.outputs]


def _last_uses(steps: list[Step], outputs: list[Ref]) -> dict[Step, list[Step]]:
    """Step -> those steps with memory of their own that it is the last to read; `steps` in the order in which they run."""
    kept = {ref.source for ref in outputs}
    last = {source: step for step in steps for source in step.sources if isinstance(source, Step) and source.own}
    uses: dict[Step, list[Step]] = {}
    for source, step in last.items():
        if source not in kept:
            uses.setdefault(step, []).append(source)
    return uses


def _count(steps: list[Step]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for step in steps:
        counts.setdefault(step.op, Counter())[_kernel(step)] += 1
    return counts


def _kernel(step: Step) -> str:
    """What computes it, which some know only once they have measured."""
    return getattr(step.run, "name", "") or step.kernel


def _bytes(step: Step) -> int:
    return step.like.nbytes + sum(ref.like.nbytes for ref in refs(step.args))
