"""What torch.export is spared, and that nothing of it is seen elsewhere."""

import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.fx import _lazy_graph_module
from torch.fx.experimental import proxy_tensor

from diffusers_oneflow import capture, exporting
from diffusers_oneflow.provenance import where

from .test_capture import program_of


class Inner(nn.Module):
    def forward(self, x):
        def halved(y):
            return y * 0.5

        return halved(x.sin())


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x) + 1


def line_of(module, text):
    """The line of `text` in the source of this file."""
    with open(__file__) as file:
        return next(number for number, line in enumerate(file, 1) if text in line)


def test_places_are_the_innermost_lines_of_forward():
    program = program_of(Outer(), torch.randn(3))
    places = {capture.op_name(n): where(n) for n in program.graph.nodes if n.op == "call_function"}
    name = "test_exporting.py"
    # A function that `forward` calls has no place of its own.
    called = f"inner, {name}:{line_of(Inner, 'return halved(x.sin())')}"
    assert places == {
        "aten.sin.default": called, "aten.mul.Tensor": called, "aten.add.Tensor": f"{name}:{line_of(Outer, 'self.inner(x) + 1')}"
    }  # fmt: skip


def test_places_are_those_that_torch_writes(monkeypatch):
    import contextlib

    mine = program_of(Outer(), torch.randn(3))
    monkeypatch.setattr(exporting, "sparing", contextlib.nullcontext)
    stock = program_of(Outer(), torch.randn(3))
    assert [where(n) for n in mine.graph.nodes] == [where(n) for n in stock.graph.nodes]
    assert max(n.meta.get("stack_trace", "").count("File") for n in stock.graph.nodes) > 1  # it was torch that wrote them


def test_all_is_as_before_afterwards():
    before = proxy_tensor._ModuleStackTracer.create_node
    with exporting.alone(), exporting.sparing():
        assert proxy_tensor._ModuleStackTracer.create_node is not before
        assert _lazy_graph_module._use_lazy_graph_module_flag
    assert proxy_tensor._ModuleStackTracer.create_node is before
    assert not _lazy_graph_module._use_lazy_graph_module_flag


def test_an_export_in_another_thread_meanwhile_has_whole_traces():
    made = []

    def other():
        made.append(torch.export.export(Outer(), (torch.randn(3),), strict=False))

    with exporting.sparing():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    (exported,) = made
    assert any(n.meta.get("stack_trace", "").count("File") > 1 for n in exported.graph.nodes)
    assert torch.equal(exported.module()(torch.zeros(3)), torch.ones(3))


_TRACED_IN_A_THREAD_FIRST = """
import threading
import torch
import diffusers_oneflow

def trace(size):
    module = diffusers_oneflow.compile(torch.nn.Sequential(torch.nn.Linear(size, 3), torch.nn.SiLU()).eval())
    with torch.no_grad():
        module(torch.randn(2, size))

def others():
    for size in range(1, 300):
        torch.randn(size)

def run(*targets):
    threads = [threading.Thread(target=target, args=args) for target, args in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

run((trace, (4,)))
# What the thread has left is used again.
kept = [bytearray(size) for size in range(8, 200, 8) for _ in range(2000)]
run(*[(others, ())] * 8)
run((trace, (5,)))
trace(6)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch takes the guard of the GPU")
def test_the_first_thread_that_traces_may_end():
    subprocess.run([sys.executable, "-c", _TRACED_IN_A_THREAD_FIRST], check=True, timeout=600)
