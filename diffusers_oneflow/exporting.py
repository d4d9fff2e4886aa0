"""What torch.export is kept from while it traces a module, and what it is spared."""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import uninteresting_files

TRACE_LOCK = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep torch.export out of other threads: it patches nn.Module for the whole process while it traces."""
    tracer: Any = proxy_tensor._ModuleStackTracer
    with TRACE_LOCK:
        _keep_guard()
        owner, call_module, getattr_ = threading.get_ident(), tracer.call_module, tracer.getattr

        def guarded_call(
            self: Any, m: torch.nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            mine = threading.get_ident() == owner
            return call_module(self, m, forward, args, kwargs) if mine else forward(*args, **kwargs)

        def guarded_getattr(self: Any, attr: str, attr_val: object, cache: dict[str, Any]) -> object:
            return getattr_(self, attr, attr_val, cache) if threading.get_ident() == owner else attr_val

        tracer.call_module, tracer.getattr = guarded_call, guarded_getattr
        try:
            yield
        finally:
            tracer.call_module, tracer.getattr = call_module, getattr_


@functools.cache
def _keep_guard() -> None:
    """Let a thread that stays be the first that traces, where torch finds no GPU.

    The first one registers, for the whole process, a stand-in for the GPU's device guard that lives as long as this thread does
    (`ensureCUDADeviceGuardSet` in torch's c10/core/impl/DeviceGuardImplInterface.cpp): when a server's worker was the first and
    has ended, the next trace reads freed memory, which ends the process.
    """
    if torch.cuda.is_available():
        return
    ready = threading.Event()

    def register() -> None:
        with contextlib.suppress(Exception):  # another torch may have no such thing, and what it has may raise
            torch._C._ensureCUDADeviceGuardSet()
        ready.set()

    def stay() -> None:
        register()
        threading.Event().wait()

    if threading.current_thread() is threading.main_thread():
        register()
        return
    try:
        threading.Thread(target=stay, name="diffusers_oneflow keeps torch's guard", daemon=True).start()
    except RuntimeError:  # no more threads for this user: it is as torch would have it
        register()
    ready.wait()


@contextlib.contextmanager
def sparing() -> Iterator[None]:
    """Spare torch.export a quarter of its time, inside `alone`: it writes Python for graphs that nobody runs, six times, and for
    each node it looks up all lines of the stack, of which `provenance.where` reads one."""
    tracer: Any = proxy_tensor._ModuleStackTracer
    create_node, owner = tracer.create_node, threading.get_ident()

    def create_placed(self: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        mine = threading.get_ident() == owner
        if mine:
            self.record_stack_traces = False
        node: torch.fx.Node = create_node(self, *args, **kwargs)
        if mine and node.op == "call_function" and not node.stack_trace:
            node.stack_trace = _line()
        return node

    tracer.create_node = create_placed
    try:
        with _use_lazy_graph_module(True):
            yield
    finally:
        tracer.create_node = create_node


def _line() -> str | None:
    """The innermost line of a ``forward`` that is no tracer's, as a traceback has it."""
    frame = sys._getframe(1)
    tracers = uninteresting_files()
    while frame is not None and (frame.f_code.co_name != "forward" or frame.f_code.co_filename in tracers):
        frame = frame.f_back  # type: ignore[assignment]  # None is where the stack begins
    return None if frame is None else f'File "{frame.f_code.co_filename}", line {frame.f_lineno}, in forward'


@contextlib.contextmanager
def forgetful() -> Iterator[None]:
    """Drop what torch keeps of every export for good: the shapes that ops were traced for, and the code of graphs."""
    sources = torch.fx.graph_module._loader.eval_cache
    before = set(sources)
    try:
        yield
    finally:
        torch._subclasses.fake_tensor.FakeTensorMode.cache_clear()
        for name in set(sources) - before:
            sources.pop(name, None)
            linecache.cache.pop(name, None)
