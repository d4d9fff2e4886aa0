"""How ops are judged in half types, where of many calls one is off by chance."""

from dataclasses import replace

import pytest
import torch

from conformance import ops, place
from conformance.__main__ import main
from conformance.place import Place
from diffusers_oneflow.parity import HALF_FACTOR, Component, Error
from diffusers_oneflow.replay.graph import ReplayGraph

OP = "aten.scaled_dot_product_attention.default"
# By a little, as one number can be; and what nothing like chance makes.
LITTLE, MUCH = Error(1.0, 1.4 * HALF_FACTOR), Error(1.0, 2.0 * HALF_FACTOR)


@pytest.fixture
def half():
    with place.running(Place(dtype="float16", replay=True), "oneflow"):
        yield place.here()


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """A third of its numbers one unit in the last place off."""
    if tensor.dtype != torch.float16:
        return tensor
    bits = tensor.contiguous().view(torch.int16).clone()
    bits.view(-1)[::3] += 1
    return bits.view(tensor.dtype)


def called(place: Place, dtype: torch.dtype, op: str = OP):
    """A call of the op's tests, at a place."""
    from tests.lowering import harness

    made = [ops._there(call, place) for calls in harness.calls(op) for call in calls]
    return next(c for c in made if c is not None and c.expected[0].dtype == dtype and c.expected[0].numel() > 8)


def test_others_decide_of_a_call_that_is_off_by_a_little(half):
    call = called(half, torch.float16)
    row = Component(f"{OP} (op) float16", Error(1.0, 1.0), LITTLE, HALF_FACTOR)
    asked = []

    def right(others):
        asked.extend(others)
        return [other.expected for other in others]

    found = ops._again(row, f"{OP} (op)", call, right, 0)
    assert found.passed and found.path == row.path and found.torch == found.ours
    assert len(asked) == 32 and all(other.expected[0].shape == call.expected[0].shape for other in asked)
    assert not any(torch.equal(other.expected[0], call.expected[0]) for other in asked)
    found = ops._again(row, f"{OP} (op)", call, lambda others: [[moved(t) for t in other.expected] for other in others], 0)
    assert not found.passed


def test_of_a_call_whose_numbers_cannot_be_others_nothing_else_decides(half):
    call = called(half, torch.int64, "aten.permute.default")
    row = Component("aten.permute.default (op) int64", Error(0.0, 0.0), LITTLE, HALF_FACTOR)
    assert ops._again(row, "aten.permute.default (op)", call, lambda others: pytest.fail("there are none"), 0) == row


def test_what_is_always_a_little_off_fails(half, monkeypatch):
    judge, again, decided = ops.judge, ops._again, []

    def off(*given):
        row = judge(*given)
        worse = Error(*(1.4 * HALF_FACTOR * measure for measure in (row.torch.rms, row.torch.maximum)))
        return replace(row, ours=worse) if row.path.endswith("float16") else row

    def counted(row, *rest):
        decided.append(again(row, *rest))
        return decided[-1]

    assert ops.run(OP).passed
    monkeypatch.setattr(ops, "judge", off)
    monkeypatch.setattr(ops, "_again", counted)
    assert any(f"{OP} (op) float16: its " in sentence for sentence in ops.run(OP).failures)
    # Once for each kind of kernel: what failed need not be asked again.
    assert [row.path for row in decided] == [f"{OP} (op) float16", f"{OP} (passes) float16"]
    assert not any(row.passed for row in decided) and all(row.ours.peak is not None for row in decided)


def test_a_fault_that_is_not_so_little_is_seen(monkeypatch, capsys):
    arguments = ["--replay", "--dtype", "float16", "--only", OP]
    original = ReplayGraph.__call__
    monkeypatch.setattr(ReplayGraph, "__call__", lambda self, given: [moved(t) for t in original(self, given)])
    assert main(arguments) == 1
    assert f"{OP} (op) float16: its " in capsys.readouterr().out


@pytest.mark.parametrize(("found", "asks"), [(LITTLE, True), (MUCH, False)])
def test_what_is_far_off_is_no_chance(half, monkeypatch, found, asks):
    passing, asked = Component("x", Error(1.0, 1.0), Error(1.0, 1.0), HALF_FACTOR), []
    monkeypatch.setattr(ops, "judge", lambda name, *values: Component(name, Error(1.0, 1.0), found, HALF_FACTOR))
    monkeypatch.setattr(ops, "_again", lambda row, *rest: asked.append(row) or passing)
    report = ops.run("aten.silu.default")
    assert report.passed == asks and bool(asked) == asks
