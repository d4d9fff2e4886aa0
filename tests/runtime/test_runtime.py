"""The native runtime: the cured race, the arena, what builds leave behind, and the watch over dictionaries."""

import ctypes
import gc
import subprocess
import sys

import pytest
import torch

from diffusers_oneflow import OneFlowConfig, compile, detach, engine, explain

RACE = """
import oneflow, torch, diffusers_oneflow
module = diffusers_oneflow.compile(torch.nn.ReLU())
x = torch.tensor([-1.0, 2.0])
with torch.no_grad():
    wrong = sum(module(x * i).tolist() != [0.0, 2.0 * i] for i in range(1, 400))
print(wrong, diffusers_oneflow.explain(module, show=False).fallbacks)
"""


def test_calls_are_right_when_oneflow_was_imported_first():
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["0", "0"]), done.stderr
    assert engine.native().race_waits() >= 0


# The kernel pack would make one op of a whole chain.
UNFUSED = OneFlowConfig(kernels="oneflow")


class Chain(torch.nn.Module):
    """`length` steps over a (n,) tensor, none of which can be left out."""

    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, x):
        for i in range(self.length):
            x = torch.sin(x) + i
        return x


@torch.no_grad()
def test_activations_are_reused():
    module = compile(Chain(40), UNFUSED)
    module(torch.ones(100_000))
    (graph,) = explain(module, show=False)["Chain"].graphs
    assert graph.unplanned_bytes > 40 * 400_000
    assert graph.activation_bytes < 4 * 400_000


@torch.no_grad()
def test_graphs_that_share_the_arena_do_not_disturb_each_other():
    small, large = compile(Chain(5), UNFUSED), compile(Chain(9), UNFUSED)
    x, y = torch.linspace(0, 1, 50), torch.linspace(0, 1, 5000)
    expected = Chain(5)(x), Chain(9)(y)
    for _ in range(5):
        torch.testing.assert_close(small(x), expected[0])
        torch.testing.assert_close(large(y), expected[1])


@torch.no_grad()
def test_the_arena_shrinks_with_its_largest_graph():
    gc.collect()  # the arena is that of all graphs
    before = engine.native().arena_bytes()
    module = compile(Chain(3), UNFUSED)
    module(torch.ones(30_000_000))
    assert engine.native().arena_bytes() > before + 100_000_000
    detach(module)
    assert engine.native().arena_bytes() <= before


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]  # fmt: skip


def allocated() -> int:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    return libc.mallinfo2().uordblks


@torch.no_grad()
def test_dropped_graphs_leave_little_behind():
    ops, used = 200, []
    for _ in range(6):
        module = compile(Chain(ops // 2), UNFUSED)
        module(torch.ones(10))
        detach(module)
        gc.collect()
        used.append(allocated())
    # OneFlow by itself keeps 20 KB for every op of a graph.
    assert (used[-1] - used[1]) / 4 / ops < 4096


def watch(dicts=(), lists=(), objects=(), types=(), tensors=()):
    handles = list(map(torch._C._aoti.unsafe_alloc_void_ptr_from_tensor, tensors))
    return engine.native().StructureWatch(dicts, lists, objects, types, handles)


def test_a_watch_sees_every_write():
    first, second = {"a": 1}, {}
    watching = watch((first, second))
    assert not watching.changed()
    first.get("a")
    assert not watching.changed()
    second["b"] = 2
    assert watching.changed()
    assert not watch((first, second)).changed()
    with pytest.raises(TypeError, match="sequence of dictionaries"):
        watch([[]])
    with pytest.raises(ValueError, match="PyCapsule"):
        engine.native().StructureWatch((), (), (), (), [1])


@pytest.mark.parametrize(
    "change", [list.clear, list.reverse, lambda items: items.append(3), lambda items: items.__setitem__(0, 7)]
)
def test_a_watch_sees_other_items(change):
    items = [1, "two"]
    watching = watch(lists=[[], items])
    assert not watching.changed()
    change(items)
    assert watching.changed()


def test_a_watch_sees_another_forward():
    class Base(torch.nn.Module):
        def forward(self, x):
            return x

    class Derived(Base):
        pass

    watching = watch(types=[Derived, torch.nn.Linear])
    assert not watching.changed()
    Base.extra = 1
    assert not watching.changed()
    Base.forward = lambda self, x: -x
    assert watching.changed()


def test_a_watch_sees_other_types():
    class Other(torch.nn.Linear):
        pass

    layer = torch.nn.Linear(2, 2)
    watching = watch(objects=[layer])
    assert not watching.changed()
    layer.__class__ = Other
    assert watching.changed()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "data", t.data.clone()),
        lambda t: t.resize_(3, 4),
        lambda t: t.t_(),
        lambda t: t.unsqueeze_(0),
        lambda t: t.set_(t.new_empty(4, 4)),
    ],
)
def test_a_watch_sees_other_layouts(change):
    tensors = [torch.ones(2), torch.ones(4, 4), torch.ones(())]
    watching = watch(tensors=tensors)
    tensors[1] += 1
    assert not watching.changed()
    change(tensors[1])
    assert watching.changed()
    assert not watch(tensors=tensors).changed()
