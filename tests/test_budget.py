"""The memory of compiled graphs, of all models together."""

import gc
import threading

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, budget, engine
from diffusers_oneflow.backend import dispatcher_of

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Only the graphs of this test count: others may still wait to be collected."""
    monkeypatch.setattr(budget, "_owners", type(budget._owners)())
    gc.collect()  # the arena is that of all graphs, and shrinks when one is collected


def attach(module, most_bytes):
    return diffusers_oneflow.compile(module.eval(), OneFlowConfig(fallback="error", max_bytes=most_bytes))


def call(module, size):
    x = torch.randn(1, 3, size, size)
    torch.testing.assert_close(module(x), module._call_impl(x), **CLOSE)


def sizes(module):
    return [int(e.shapes[0].split(", ")[2]) for e in dispatcher_of(module).entries]


def block():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1))


def test_the_least_recently_used_graphs_of_all_models_go():
    one, two = attach(block(), 1 << 40), attach(block(), 1 << 40)
    call(one, 8)
    call(two, 8)
    each = max(e.bytes for m in (one, two) for e in dispatcher_of(m).entries)
    limit = budget.used() + each // 2
    for module in (one, two):
        dispatcher_of(module).config = OneFlowConfig(fallback="error", max_bytes=limit)
    call(one, 8)
    call(one, 10)
    assert (sizes(one), sizes(two)) == ([8, 10], [])
    call(two, 8)
    assert (sizes(one), sizes(two)) == ([10], [8])
    assert budget.used() <= limit


def test_the_newest_stays_however_large_it_is():
    module = attach(block(), 1)
    for size in (8, 10, 12):
        call(module, size)
        assert sizes(module) == [size]


def test_the_arena_counts():
    module = attach(block(), 1 << 40)
    call(module, 256)
    (entry,) = dispatcher_of(module).entries
    # Another's graph that lives on may need a larger one.
    assert budget.used() == entry.bytes + engine.native().arena_bytes()
    assert engine.native().arena_bytes() >= 256 * 256 * 8 * 4


def test_a_model_at_work_in_another_thread_is_passed_over():
    one, two = attach(block(), 1 << 40), attach(block(), 1)
    call(one, 8)
    holds, done = threading.Event(), threading.Event()

    def hold():
        with dispatcher_of(one)._lock:
            holds.set()
            assert done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(60)
    try:
        call(two, 8)
        assert sizes(one) == [8]
    finally:
        done.set()
        thread.join()
    call(two, 10)
    assert sizes(one) == []


def test_a_detached_model_counts_no_more():
    before = budget.used()
    module = attach(block(), 1 << 40)
    call(module, 8)
    assert budget.used() > before
    diffusers_oneflow.detach(module)
    assert budget.used() == before


@pytest.mark.parametrize("value", [0, -1, 1.5, None, "1 GB"])
def test_other_budgets_are_refused(value):
    with pytest.raises(ValueError, match="max_bytes"):
        OneFlowConfig(max_bytes=value)
