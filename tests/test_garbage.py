"""Python's garbage collector while graphs are made."""

import gc
import threading
import weakref

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import fingerprint, garbage


def test_nothing_is_collected_until_the_last_of_several_is_done():
    assert gc.isenabled()
    inside, done = threading.Event(), threading.Event()

    def other():
        with garbage.paused():
            inside.set()
            assert done.wait(60)

    thread = threading.Thread(target=other)
    with garbage.paused():
        thread.start()
        assert inside.wait(60)
        assert not gc.isenabled()
    assert not gc.isenabled()
    done.set()
    thread.join()
    assert gc.isenabled()


def test_exports_collect_and_a_collector_that_is_off_stays_off():
    with garbage.paused():
        with garbage.resumed():
            assert gc.isenabled()
        assert not gc.isenabled()
    gc.disable()
    try:
        with garbage.paused(), garbage.resumed():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_a_build_leaves_is_gone_afterwards():
    class Node:
        pass

    node = Node()
    node.itself = node
    with garbage.paused():
        node = Node()
        node.itself = node
        gone = threading.Event()
        node.end = type("End", (), {"__del__": lambda self: gone.set()})()
        del node
        assert not gone.is_set()
    assert gone.is_set()


class Plain(torch.nn.Module):
    def forward(self, x):
        return x.sin() + 1


@pytest.mark.parametrize("attach", [diffusers_oneflow.compile, lambda module: fingerprint.fingerprint(module)])
def test_a_module_goes_when_it_is_dropped(attach):
    gone = []
    for _ in range(3):
        module = Plain().eval()
        attach(module)
        with torch.no_grad():
            module(torch.randn(3))
        diffusers_oneflow.detach(module)
        weakref.finalize(module, gone.append, 1)
        del module
    gc.collect(0)
    assert len(gone) == 3


def test_what_was_young_and_gone_is_not_frozen():
    gone = []

    class Node:
        pass

    with garbage.paused():
        node = Node()
        node.itself = node
        weakref.finalize(node, gone.append, 1)
        del node
        with garbage.resumed():
            assert gone == [1]


def looked_at(thing):
    """Whether collections look at it: what is frozen, they do not (https://docs.python.org/3/library/gc.html#gc.freeze).

    Counts would not tell: what others drop meanwhile is frozen, too, and goes.
    """
    return any(other is thing for other in gc.get_objects())


def test_exports_look_at_what_they_make_alone():
    before = []
    with garbage.paused(), garbage.resumed():
        made = []
        assert looked_at(made)
        assert not looked_at(before)
    assert looked_at(before)


def test_what_a_server_froze_stays_frozen():
    theirs = []
    gc.freeze()
    try:
        ours = []
        with garbage.paused(), garbage.resumed():
            assert not looked_at(theirs)
            assert looked_at(ours)  # nothing else was frozen with it
        assert not looked_at(theirs)
    finally:
        gc.unfreeze()
