"""From a call of an attached module to a graph for it: captured or known, rewritten, compiled."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import autocast, budget, engine, garbage, hoisting, passes, progress, signature
from .bound import BoundWeights
from .calls import Call, Open
from .capture import Program, capture
from .config import OneFlowConfig
from .entries import Entry
from .errors import EngineUnavailable, OneFlowError
from .graph import CompiledGraph
from .kernels import loader
from .passes import hoist
from .programs import Programs
from .retrace import retrace
from .same_program import Differs
from .structure import Structure

_tracing = threading.local()
# Bytes of weights from which on reading them again in every call takes longer than noticing that nothing has changed.
_WORTH_HOISTING = 32 << 20


@dataclass(frozen=True)
class Job:
    """What a graph is made of.

    Attributes:
        structure: of the module.
        program: after the passes.
        tensors: one per input, for shapes and dtypes.
        native: whether the pack's kernels run what they can.
        stage: is told how far it is.
        known: what the module's other graphs compute apart.
    """

    structure: Structure
    program: Program
    tensors: list[torch.Tensor]
    native: bool
    stage: progress.Stage
    known: Sequence[hoisting.Hoisted]


class Builder:
    """Builds the graphs of one module.

    Args:
        path: the module's name in messages.
        config: options.

    Attributes:
        weights: the module's, as its graphs take them.
        programs: those captured so far, in memory and on disk.
    """

    def __init__(self, path: str, config: OneFlowConfig) -> None:
        self._path, self._config = path, config
        self.weights, self.programs = BoundWeights(config), Programs(config.cache)

    def build(
        self, module: torch.nn.Module, structure: Structure, call: Call, opened: Open, known: Sequence[hoisting.Hoisted]
    ) -> Entry | str:
        """A graph for a call, or the reason why there is none.

        Args:
            opened: which numbers are its inputs.
            known: what the module's other graphs compute apart.

        Raises:
            EngineUnavailable, torch.OutOfMemoryError: nothing was built; torch would not help.
        """
        program = None
        bar = progress.Bar(self._path, sum(w.nbytes for w in structure.weights.values()), self._config.progress)
        try:
            with bar, garbage.paused(), autocast.off(call.autocast):
                engine.load()
                native = self._config.kernels == "native" and not loader.refusal()
                tensors = call.tensors(opened)
                if structure.device.type != "cpu":
                    from .replay import devices

                    devices.device_for(structure.device).wake()
                rest = (call.fixed(opened), str(attention_backend()), torch.get_default_dtype(), str(call.autocast))
                make = functools.partial(_capture, module, call, opened)
                found = self.programs.find(module, structure, call.flat.spec, tensors, rest, native, make)
                program = found.program
                bar.stage("passes", 1.0)
                compile = self.compile if structure.device.type == "cpu" else self.compile_elsewhere
                graph, hoisted = compile(Job(structure, program, tensors, native, bar.stage, known))
        except (EngineUnavailable, torch.OutOfMemoryError):
            raise
        except OneFlowError as error:
            return str(error)
        except Exception as error:  # whatever the module's code or torch.export raises: torch must judge the call
            message = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            if program is None:
                return f"it could not be captured by torch.export: {message}"
            return f"building its graph failed inside diffusers_oneflow, please report this: {message}"
        seconds = {**found.seconds, **graph.seconds}
        shapes = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors]
        ops = passes.op_counts(program)
        return Entry(graph, program.result, opened, shapes, ops, found.rewrites, seconds, hoisted, found.origin)

    def compile(self, job: Job) -> tuple[CompiledGraph, list[hoisting.Hoisted]]:
        """On the CPU OneFlow runs the graph; what changes rarely is computed apart."""
        store = self.weights.prepare(job.native)
        wanted = job.native and self._config.hoist is not False
        prologues = hoist.split(job.program, 0 if self._config.hoist else _WORTH_HOISTING) if wanted else []
        bind = functools.partial(self.weights.bind, job.structure, store)
        hoisted = hoisting.build(prologues, job.program, bind, job.tensors, store, job.known)
        return CompiledGraph(job.program, bind(job.program), job.tensors, job.stage, store), hoisted

    def compile_elsewhere(self, job: Job) -> tuple[Any, list[hoisting.Hoisted]]:
        """On another device OneFlow plans the graph, and the device replays it (`replay`)."""
        from .replay import devices
        from .replay.graph import ReplayGraph

        held, where = job.structure.weights, job.structure.device
        constants = {name: constant.to(where) for name, constant in job.program.constants.items()}
        weights = {name: held[q].detach() for name, q in job.program.weights.items()} | constants
        make = functools.partial(ReplayGraph, job.program, weights, job.tensors, devices.device_for(where), job.stage)
        try:
            return make(), []
        except torch.OutOfMemoryError:
            if not budget.make_room(where):
                raise
        return make(), []


def is_tracing() -> bool:
    """Whether the calling thread captures a module, here or in torch: then the trace must see torch's ops."""
    if getattr(_tracing, "on", False):
        return True
    # torch.export's sign is set for the whole process; only its thread has a dispatch mode as well.
    if torch._C._len_torch_dispatch_stack() > 0 and torch.compiler.is_compiling():
        return True
    return torch.compiler.is_dynamo_compiling() or torch._C._get_tracing_state() is not None


def attention_backend() -> Any:
    """What diffusers computes attention with, for the whole process."""
    module = sys.modules.get("diffusers.models.attention_dispatch")
    return module._AttentionBackendRegistry._active_backend if module is not None else None


def _capture(module: torch.nn.Module, call: Call, opened: Open, known: list[Program]) -> Program:
    from . import lowering

    flat, tensors = call.flat, call.tensors(opened)
    count = len(flat.tensors)
    end = count + (len(flat.numbers) if opened.numbers else 0)

    def rebuild(tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return signature.rebuild_call(flat.spec, tensors[:count], tensors[count:end] if opened.numbers else flat.numbers)

    def adapted(copied: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        return call.strengths.put(copied, tensors[end:] if opened.strengths else call.strengths.values(call.factor))

    _tracing.on = True
    try:
        if known:
            # Retracing stands in for the CPU alone, and knows no casts.
            if call.autocast is not None or any(t.device.type != "cpu" for t in tensors):
                raise Differs("it is on a GPU, or under torch.autocast")
            return retrace(module, tensors, rebuild, signature.flatten, known, adapted)
        with garbage.resumed():
            return capture(module, tensors, rebuild, signature.flatten, lowering.is_lowered, adapted, call.autocast)
    finally:
        _tracing.on = False
