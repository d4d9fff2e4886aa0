"""Kernels take the place of memsets in a CUDA graph, here in one of a driver that is made up."""

import ctypes
import itertools

import pytest
import torch

from diffusers_oneflow.replay.cuda import driver as driver_of
from diffusers_oneflow.replay.cuda import memsets

KERNEL, MEMSET, COPY = 0, 2, 1


class Driver:
    """As much of the driver as is asked for: graphs of numbered nodes, which come after others.

    Attributes:
        kinds, memory, before: by node: what it is, ``(address, words)`` that it clears, and what it waits for.
        graphs: the nodes of each graph.
    """

    def __init__(self):
        self.kinds, self.memory, self.before, self.graphs, self.held = {}, {}, {}, {}, []
        self._numbers = itertools.count(100)

    def add(self, graph, kind, before=(), memory=None, value=0, height=1):
        node = next(self._numbers)
        self.kinds[node], self.before[node], self.memory[node] = kind, list(before), (memory, value, height)
        self.graphs.setdefault(graph, []).append(node)
        return node

    def __getattr__(self, name):
        def call(*args):
            return getattr(self, f"_{name}")(*[getattr(a, "_obj", a) for a in args]) or 0

        return call

    @staticmethod
    def _list(found, nodes, count):
        if nodes is not None and not found:
            return 1  # as the driver: an invalid value
        if nodes is None:
            count.value = len(found)
        else:
            nodes[: len(found)] = found
        return 0

    def _cuGraphGetNodes(self, graph, nodes, count):
        return self._list(self.graphs[graph.value], nodes, count)

    def _cuGraphNodeGetDependencies(self, node, nodes, count):
        return self._list(self.before[node.value], nodes, count)

    def _cuGraphNodeGetDependentNodes(self, node, nodes, count):
        return self._list([n for n, before in self.before.items() if node.value in before], nodes, count)

    def _cuGraphNodeGetType(self, node, kind):
        kind.value = self.kinds[node.value]

    def _cuGraphMemsetNodeGetParams(self, node, made):
        (made.place, words), made.value, made.height = self.memory[node.value]
        made.size, made.width = 4, words

    def _cuGraphKernelNodeGetParams_v2(self, node, kernel):
        values = [ctypes.c_uint64(v) for v in self.memory[node.value][0]]
        pointers = (ctypes.POINTER(ctypes.c_uint64) * 2)(*map(ctypes.pointer, values))
        self.held += [values, pointers]
        kernel.arguments = pointers

    def _cuGraphAddKernelNode_v2(self, new, graph, before, count, kernel):
        memory = kernel.arguments[0][0], kernel.arguments[1][0]
        new.value = self.add(graph.value, KERNEL, list(before or ())[: count.value], memory)

    def _cuGraphAddDependencies(self, graph, first, then, count):
        for a, b in list(zip(first, then))[: count.value]:
            self.before[b].append(a)

    def _cuGraphDestroyNode(self, node):
        for nodes in (*self.graphs.values(), *self.before.values()):
            if node.value in nodes:
                nodes.remove(node.value)
        for table in (self.kinds, self.before, self.memory):
            del table[node.value]


class Graph:
    def __init__(self, number):
        self.number = number

    def raw_cuda_graph(self):
        return self.number


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    monkeypatch.setattr(driver_of, "library", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())

    def captured(spans, device):
        for place, size in spans:
            made.add(2, KERNEL, memory=(place, size // 4))
        return Graph(2)

    monkeypatch.setattr(memsets, "_captured", captured)
    return made


def test_memsets_become_kernels_in_their_place(driver):
    first = driver.add(1, MEMSET, memory=(4096, 3))  # nothing comes before it
    kernel = driver.add(1, KERNEL, [first])
    second = driver.add(1, MEMSET, [kernel], (8192, 5))
    ends = [driver.add(1, KERNEL, [second]), driver.add(1, COPY, [second, kernel])]
    driver.add(1, MEMSET, [ends[0]], (4096, 3))  # the same place again, and nothing comes after it
    assert memsets.replace(Graph(1), torch.device("cuda", 0)) == 3
    assert all(driver.kinds[n] != MEMSET for n in driver.graphs[1])
    a, b, c = driver.graphs[1][-3:]
    assert [driver.memory[n][0] for n in (a, b, c)] == [(4096, 3), (8192, 5), (4096, 3)]
    assert driver.before[kernel] == [a] and driver.before[a] == []
    assert (
        driver.before[ends[0]] == [b] and sorted(driver.before[ends[1]]) == sorted([kernel, b]) and driver.before[b] == [kernel]
    )
    assert driver.before[c] == [ends[0]]


@pytest.mark.parametrize(
    "memset",
    [
        {"memory": (4098, 3)},
        {"memory": (4096, 1 << 20)},
        {"memory": (4096, 3), "value": 1},
        {"memory": (4096, 3), "height": 2},
    ],
)
def test_other_memsets_stay(driver, memset):
    node = driver.add(1, MEMSET, **memset)
    assert memsets.replace(Graph(1), torch.device("cuda", 0)) == 0
    assert driver.graphs[1] == [node]


def test_memsets_that_follow_each_other_stay_in_order(driver):
    first = driver.add(1, MEMSET, memory=(4096, 3))
    second = driver.add(1, MEMSET, [first], (8192, 5))
    kernel = driver.add(1, KERNEL, [second])
    assert memsets.replace(Graph(1), torch.device("cuda", 0)) == 2
    end, a, b = driver.graphs[1]
    assert end == kernel and driver.before[kernel] == [b] and driver.before[b] == [a] and driver.before[a] == []


@pytest.mark.parametrize("function", ["cuGraphGetNodes", "cuGraphNodeGetDependencies"])
def test_where_the_driver_does_not_say_the_memsets_stay(driver, function):
    node = driver.add(1, MEMSET, memory=(4096, 3))
    setattr(driver, f"_{function}", lambda *args: 914)
    assert memsets.replace(Graph(1), torch.device("cuda", 0)) == 0
    assert driver.graphs[1] == [node]


def test_what_the_driver_refuses_is_said(driver):
    driver.add(1, MEMSET, memory=(4096, 3))
    driver._cuGraphDestroyNode = lambda node: 7
    with pytest.raises(RuntimeError, match="cuGraphDestroyNode returned status 7"):
        memsets.replace(Graph(1), torch.device("cuda", 0))
