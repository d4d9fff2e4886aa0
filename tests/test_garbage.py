"""Python's garbage collector while graphs are made."""

import gc
import threading

from diffusers_oneflow import garbage


def test_nothing_is_collected_until_the_last_of_several_is_done():
    assert gc.isenabled()
    inside, done = threading.Event(), threading.Event()

    def other():
        with garbage.paused():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=other)
    with garbage.paused():
        thread.start()
        inside.wait(10)
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


def test_exports_look_at_what_they_make_alone():
    assert not gc.get_freeze_count()
    with garbage.paused(), garbage.resumed():
        assert gc.get_freeze_count() > 1000
    assert not gc.get_freeze_count()
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with garbage.paused(), garbage.resumed():
            assert gc.get_freeze_count() == count
        assert gc.get_freeze_count() == count  # a server's own, say
    finally:
        gc.unfreeze()
