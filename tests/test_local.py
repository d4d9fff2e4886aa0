"""Ops that cannot be lowered are decomposed alone, and what comes of them computes the same."""

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusers_oneflow import lowering, passes
from diffusers_oneflow.capture import _table, is_bookkeeping, op_name
from diffusers_oneflow.local import decompose
from diffusers_oneflow.parity import component
from diffusers_oneflow.provenance import where
from tests.test_capture import Function, program_of

X, Y = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def masks(x, y):
    """Each of these ops reads the one before."""
    return (x > 0) & (y > 0) & (x < 1) & (y < 1)


FUNCTIONS = {
    "aten.einsum.default": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "aten.concat.default": lambda x, y: torch.concat([x, y, x.sin()], -1),
    "aten.outer.default": lambda x, y: torch.outer(x[0], y[1]) + 1,
    "aten.clip.default": lambda x, y: x.clip(-0.5, 0.5) * y,
    "aten.meshgrid.indexing": lambda x, y: torch.meshgrid(x[0], y[0], indexing="ij")[1] + 1,
    "aten.linspace.default": lambda x, y: x + torch.linspace(0, 1, 4, device=x.device),
    "aten.__and__.Tensor": lambda x, y: masks(x, y).float(),
}


@pytest.fixture
def alone(monkeypatch):
    """A second trace of everything fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("everything was traced again")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", refuse)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_one_op_is_decomposed_where_it_stands(op, alone):
    assert not lowering.is_lowered(op)
    module = Function(FUNCTIONS[op]).eval()
    seen = {op_name(n) for n in torch.export.export(module, (X, Y)).graph.nodes if n.op == "call_function"}
    assert op in seen
    assert all(map(lowering.is_lowered, passes.op_counts(program_of(module, X, Y))))
    assert component(module, (X, Y), {}).passed


def test_on_a_gpu_as_well(alone):
    """Nothing is computed, so none is needed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, y = (torch.empty(3, 4, dtype=torch.float16, device="cuda") for _ in range(2))
    for function in FUNCTIONS.values():
        graph = torch.export.export(Function(function), (x, y), strict=False).graph
        nodes = [n for n in graph.nodes if n.op == "call_function" and not (is_bookkeeping(n) or lowering.is_lowered(op_name(n)))]
        assert nodes and decompose(graph, nodes, _table(lowering.is_lowered), lambda node: True)
        calls = [n for n in graph.nodes if n.op == "call_function" and not is_bookkeeping(n)]
        assert all(lowering.is_lowered(op_name(n)) for n in calls)
        made = [n.meta["val"] for n in calls]
        assert any(t.device.type == "cuda" for t in made) and made[-1].device.type == "cuda"


def test_several_results_are_each_read_where_they_were(alone):
    def both(x, y):
        a, b = torch.meshgrid(x[0], y[0], indexing="xy")
        return torch.einsum("ij,ij->i", a, b), a, torch.concat([b, a])

    module = Function(both).eval()
    program = program_of(module, X, Y)
    assert len(program.outputs) == 3
    assert component(module, (X, Y), {}).passed


def test_what_comes_of_an_op_is_a_part_of_its_module(alone):
    class Inner(torch.nn.Module):
        def forward(self, x):
            return torch.einsum("ij,kj->ik", x, x)

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x).sin()

    nodes = [n for n in program_of(Outer(), X).graph.nodes if n.op == "call_function" and not is_bookkeeping(n)]
    assert len(nodes) > 2 and all(where(n).startswith("inner, test_local.py:") for n in nodes[:-1])


def test_what_cannot_be_decomposed_alone_is_left(monkeypatch):
    """All of it: then everything is traced again, from the graph as it was."""
    exported = torch.export.export(Function(lambda x: torch.einsum("ij,kj->ik", x, x).clip(0, 1)), (X,), strict=False)
    before = str(exported.graph)
    nodes = [n for n in exported.graph.nodes if n.op == "call_function"]
    assert not decompose(exported.graph, nodes, {}, lambda node: "clamp" not in op_name(node))
    nodes[1].meta = {**nodes[1].meta, "val": None}  # nothing is known of its result
    assert not decompose(exported.graph, nodes, {}, lambda node: True)
    assert str(exported.graph) == before
    monkeypatch.setattr("diffusers_oneflow.local.make_fx", None)
    module = Function(FUNCTIONS["aten.einsum.default"]).eval()
    assert all(map(lowering.is_lowered, passes.op_counts(program_of(module, X, Y))))


def test_what_torch_compiled_runs_in_other_threads_meanwhile(alone):
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
    compiled(X)
    module = Function(lambda x, y: torch.concat([x.clip(0, 1)[:2], y[2:]])).eval()
    failed, stop = [], threading.Event()

    def call():
        while not stop.is_set():
            try:
                compiled(X)
            except RuntimeError as error:
                failed.append(str(error))
                break

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(5):
            program_of(module, X, Y)
    finally:
        stop.set()
        thread.join()
    assert not failed


def test_lists_within_results_are_left():
    """A graph could not read them."""
    with torch.library._scoped_library("dfo_test_local", "DEF") as library:
        library.define("nest(Tensor x) -> (Tensor, Tensor[])")
        library.impl("nest", lambda x: (x.sin(), [x.cos(), x.exp()]), "CompositeImplicitAutograd")

        def nested(x):
            first, (second, third) = torch.ops.dfo_test_local.nest(x)
            return first + second, third

        exported = torch.export.export(Function(nested), (X,), strict=False)
        nodes = [n for n in exported.graph.nodes if n.op == "call_function" and "nest" in op_name(n)]
        assert len(nodes) == 1 and not decompose(exported.graph, nodes, {}, lambda node: True)


def test_an_op_of_another_shape_is_no_way_to_compute_one():
    exported = torch.export.export(Function(lambda x: torch.logaddexp(x, x)), (X,), strict=False)
    (node,) = (n for n in exported.graph.nodes if n.op == "call_function")
    for wrong in (lambda x, y: (x + y).sum(), lambda x, y: (x + y).double()):
        assert not decompose(exported.graph, [node], {torch.ops.aten.logaddexp.default: wrong}, lambda node: True)


def test_an_op_that_writes_to_what_it_reads_is_no_way_to_compute_another():
    """A decomposition may fill a buffer that it makes; OneFlow's graphs have no such ops."""

    def filled(x, y):
        return torch.empty_like(x).copy_(x).mul_(y)

    exported = torch.export.export(Function(lambda x: torch.logaddexp(x, x)), (X,), strict=False)
    (node,) = (n for n in exported.graph.nodes if n.op == "call_function")
    assert not decompose(exported.graph, [node], {torch.ops.aten.logaddexp.default: filled}, lambda node: True)
