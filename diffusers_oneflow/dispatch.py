"""What a call of an attached module goes through: find its graph, or capture one, and run it."""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch

from . import autocast, budget, interop, signature, strengths
from .building import Builder, attention_backend, is_tracing
from .calls import Call, Open
from .config import OneFlowConfig
from .entries import Entry, Record
from .errors import FallbackWarning, Unsupported
from .flow_graph import ENGINE_LOCK, KernelFailed
from .graph import GraphClosed
from .kept_graphs import KeptGraphs
from .structure import Interned, Structure

if TYPE_CHECKING:
    from .parts import Parts
    from .replay.layout import Layout

# The call of a graph from which on its weights are worth being moved: not while first results are waited for.
_SOON = 3
# So often graphs are built anew for weights that are elsewhere on a GPU: with offloading they are in every run.
_MOVES = 2


class Dispatcher:
    """Stands in the place of a module's call (`nn.Module._compiled_call_impl`).

    Args:
        module: the module; it is held weakly.
        path: its name in messages (``unet``, ``vae.decoder``).
        config: options.
        split: lets the submodules of a module that cannot be captured run on OneFlow (`parts.Parts`): called with this
            dispatcher, it returns what `close` closes. None: they run in torch with it.
        part: stands for a part of a module that runs in torch, whose dispatcher speaks for it.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        path: str,
        config: OneFlowConfig,
        split: Callable[..., Any] | None = None,
        part: bool = False,
    ) -> None:
        self.path, self.config, self.record = path, config, Record()
        self.part, self._split = part, split
        self.parts: Parts | None = None
        self._module = weakref.ref(module)
        self._lock = threading.RLock()
        self._structure: Structure | None = None
        self._layout: Layout | None = None
        self._interned = Interned()
        self._graphs = KeptGraphs(config.max_graphs)
        self._groups: dict[int, strengths.Groups] = {}
        self._builder = Builder(path, config)
        budget.join(self)
        self._moves = 0
        self._death = weakref.finalize(module, _forget, weakref.ref(self))

    def __bool__(self) -> bool:
        # Not what torch.compile leaves here, for which libraries look: peft refuses to prepare such modules for hot-swaps.
        return False

    @property
    def module(self) -> torch.nn.Module | None:
        """The module, while it lives."""
        return self._module()

    @property
    def entries(self) -> list[Entry]:
        """The compiled graphs, least recently used first."""
        return self._graphs.entries

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed copies of weights."""
        store = self._builder.weights.store
        return store.packed_bytes if store is not None else 0

    @property
    def released_bytes(self) -> int:
        """Bytes of torch's own weights that are not in memory now."""
        store = self._builder.weights.store
        return store.released_bytes if store is not None else 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self._module()
        if is_tracing():
            return module._call_impl(*args, **kwargs)
        reason, call, structure = self._judge(module, args, kwargs)
        while reason is None:
            entry = self._entry(module, structure, call)
            if isinstance(entry, Entry):
                try:
                    result = self._run(entry, call)
                    strengths.after(module, call.factor)
                    return result
                except GraphClosed:
                    continue
                except KernelFailed as failed:
                    reason = f"a kernel refused its input: {failed}"
            else:
                reason = entry
                self._open_up()
        return self._fall_back(module, reason, args, kwargs)

    def close(self) -> None:
        """Drop all graphs and what they hold."""
        with self._lock:
            if self.parts is not None:
                self.parts.close()
                self.parts = None
            self._graphs.clear()
            weights = self._builder.weights
            if weights.store is not None:
                weights.store.close()
            weights.drop()
            if self._layout is not None:
                self._layout.undo()
                self._layout = None
            self._structure, self._interned, self._moves = None, Interned(), 0
            self._builder.programs.forget()
            self._groups.clear()

    def _judge(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any, Any]:
        """``(reason to run in torch or None, flattened call, structure)``."""
        taken, factor = strengths.take_factor(module, kwargs)
        try:
            flat = signature.flatten((args, taken), open_numbers=True)
        except signature.Unkeyable as error:
            return str(error), None, None
        structure = self._structure_now(module)
        casting = autocast.current(structure.device)
        if casting is not None:
            if casting not in structure.castings:
                structure.castings[casting] = casting.refusal(module, self.config.kernels)
            if reason := structure.castings[casting]:
                return reason, None, None
        if structure.refusal:
            self._open_up()
            return structure.refusal, None, None
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*flat.tensors, *structure.weights.values())):
            return "gradients are on; call it under torch.no_grad()", None, None
        if factor != 1 and not structure.factor_known:
            flat, factor = signature.flatten((args, kwargs), open_numbers=True), 1.0
        dtype = torch.float64 if structure.wide else torch.float32
        if structure.device.type == "cuda" and self._layout is None and self._elsewhere(structure) is None:
            structure = self._laid_out(module)
        return None, Call(flat, structure.sorted, factor, dtype, casting), structure

    def _laid_out(self, module: torch.nn.Module) -> Structure:
        """What the module is once its parameters lie as the GPU's kernels read them."""
        from .replay.cuda.compact import compact
        from .replay.layout import Layout

        with self._lock:
            if self._layout is None:
                # Not tensors of inference mode, which could not be written to outside it.
                with torch.inference_mode(False):
                    self._layout = Layout(module)
                    compact(module.parameters())
                moves = self._moves
                self._structure_now(module)
                self._moves = moves  # that was this package
            return self._structure_now(module)

    def _structure_now(self, module: torch.nn.Module) -> Structure:
        with self._lock:
            known = self._structure
            if known is None or not known.unchanged():
                self._structure = self._interned.intern(Structure(module), {k[0] for k in self._graphs})
                groups = self._groups.setdefault(self._structure.token, strengths.Groups())
                self._structure.sorted = groups.sort(self._structure.strengths)
                if known is not None and known.weights_key != self._structure.weights_key:
                    self._moves += self._structure.device.type != "cpu" and self._structure.is_moved(known)
                    self._drop_stale(known)
            return cast(Structure, self._structure)

    def _drop_stale(self, known: Structure) -> None:
        """Graphs on weights that have moved hold memory that nothing else uses: drop them."""
        for key in self._graphs:
            if key[0] == known.token:
                self._graphs.drop(key)
        self._forget_groups()
        self._builder.weights.drop()

    def _forget_groups(self) -> None:
        """What was learned of LoRA adapters in structures that nothing is kept of."""
        current = set() if self._structure is None else {self._structure.token}
        for token in self._groups.keys() - current - {key[0] for key in self._graphs}:
            del self._groups[token]

    def _entry(self, module: torch.nn.Module, structure: Structure, call: Call) -> Entry | str:
        """The graph for this call, or the reason why there is none."""
        flat = call.flat
        base = (
            structure.token,
            flat.spec,
            tuple(map(signature.kind, flat.tensors)),
            torch.get_default_dtype(),
            attention_backend(),
            _float32_precision(structure.device),
            call.autocast,
        )
        with self._lock:
            opened = self._graphs.opened(base, call)
            key = (*base, *call.key(opened))
            entry = self._graphs.get(key)
            known = entry is not None
            if entry is None and (reason := self._refusal(structure, flat.tensors)):
                return reason
            if entry is None:
                entry = self._build(module, structure, call, opened)
                while not isinstance(entry, Entry) and any(opened):
                    opened = self._graphs.open_less(base, opened)
                    key = (*base, *call.key(opened))
                    entry = self._build(module, structure, call, opened)
            self._graphs.put(key, entry)
            if isinstance(entry, Entry):
                entry.used = budget.tick()
            if known:
                return entry
            if self._graphs.trim():
                self._forget_groups()
            budget.keep_within(self.config.max_bytes, entry)
            return entry

    def _refusal(self, structure: Structure, tensors: list[torch.Tensor]) -> str | None:
        """Why tensors of a call cannot go into a graph of this module."""
        if structure.device.type != "cpu" and (reason := self._elsewhere(structure)):
            return reason
        return next(filter(None, (interop.refusal(interop.real(t), structure.device) for t in tensors)), None)

    def _elsewhere(self, structure: Structure) -> str | None:
        """Why there are no graphs of this module on a device that is not the CPU."""
        from .replay import devices

        if self._moves > _MOVES:
            return f"its weights were moved more than {_MOVES} times, and a graph on {structure.device} reads them where they are"
        return devices.refusal(structure.device, self.config)

    def evict(self, entry: Entry) -> bool:
        """Drop one graph; False if it is gone already, or if another thread is at work here."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            key = self._graphs.key_of(entry)
            if key is None:
                return False
            self._graphs.pop(key)
            self._forget_groups()
        finally:
            self._lock.release()
        # It waits for the engine, whose thread may be collecting garbage, and with it this dispatcher.
        entry.close()
        return True

    def _build(self, module: torch.nn.Module, structure: Structure, call: Call, opened: Open) -> Entry | str:
        if self.part and self.record.built >= 2 * self.config.max_graphs:
            return f"{self.record.built} graphs were built for it, and its calls still differ"
        known = [part for entry in self.entries for part in entry.hoisted]
        entry = self._builder.build(module, structure, call, opened, known)
        self.record.built += isinstance(entry, Entry)
        return entry

    def _run(self, entry: Entry, call: Call) -> Any:
        entry.calls += 1
        if entry.calls == _SOON and entry.graph.store is not None:
            entry.graph.store.gather()
        tensors = call.tensors(entry.opened)
        # The graph reads what its prologues left: nothing may come between.
        with ENGINE_LOCK if entry.hoisted else contextlib.nullcontext(), autocast.off(call.autocast):
            for part in entry.hoisted:
                part.update(tensors)
            outputs = entry.graph(tensors)
        return signature.rebuild(entry.result.spec, outputs)

    def _open_up(self) -> None:
        """Let the submodules run on OneFlow, now that the module as a whole cannot."""
        # Released weights are for one store: two would drop, and bring back, the same memory.
        if self._split is None or self.config.fallback == "error" or self.config.weights == "release":
            return
        with self._lock:
            if self.parts is None:
                self.parts = self._split(self)

    def _fall_back(self, module: torch.nn.Module, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        count = self.record.fallbacks.get(reason, 0)
        self.record.fallbacks[reason] = count + 1
        # Torch first: a call that is wrong in itself raises torch's own error.
        result = module._call_impl(*args, **kwargs)
        if self.config.fallback == "error":
            raise Unsupported(self.path, reason)
        if count == 0 and not self.part:
            parts = f" ({self.parts})" if self.parts is not None and self.parts.graphs else ""
            message = f"{self.path} ran in torch, not on OneFlow{parts}: {reason}"
            warnings.warn(f"{message}. diffusers_oneflow.explain() lists all such cases.", FallbackWarning, stacklevel=3)
        return result


def _float32_precision(device: torch.device) -> tuple[bool, ...]:
    """Whether products and convolutions may round float32 there: their plans are for one answer."""
    if device.type != "cuda":
        return ()
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _forget(reference: weakref.ref[Dispatcher]) -> None:
    dispatcher = reference()
    if dispatcher is not None:
        with contextlib.suppress(Exception):  # at interpreter exit parts of OneFlow may be gone already
            dispatcher.close()
