import types

import pytest

from benchmarks import compile_time, overhead


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: now[0])
    return now


def test_time_within_a_call_is_taken_off(clock):
    owner = types.SimpleNamespace()

    def run(value):
        clock[0] += 10.0
        return value

    def whole():
        clock[0] += 1.0
        assert owner.run(7) == 7
        clock[0] += 0.5

    rest, spent = overhead.within(whole, owner.__dict__, "run", run, 3)
    assert rest == [1.5, 1.5, 1.5]
    assert spent == [10.0, 10.0, 10.0]
    assert not hasattr(owner, "run")


def test_time_within_restores_what_was_there(clock):
    owner = types.SimpleNamespace(run=len)
    overhead.within(lambda: owner.run("a"), owner.__dict__, "run", owner.run, 2)
    assert owner.run is len


def test_pairs_alternate(clock):
    order = []

    def call(name, seconds):
        order.append(name)
        clock[0] += seconds

    differences = overhead.paired(lambda: call("whole", 3.0), lambda: call("bare", 2.0), 4)
    assert differences == [1.0] * 4
    assert order == ["bare", "whole", "whole", "bare"] * 2
    assert overhead.standard_error([1.0, 3.0]) == pytest.approx(1.0)


def test_compile_seconds_are_summarized_by_stage():
    runs = [{"unet": {"capture": s, "total": 2 * s}, "first call": {"total": 9.0}} for s in (1.0, 3.0, 2.0)]
    found = compile_time.summary(runs)
    assert found["unet"]["capture"].median == 2.0
    assert found["unet"]["total"].high == 5.0
    assert found["first call"]["total"].count == 3
