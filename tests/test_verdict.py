"""Errors over several calls."""

import math

import pytest
import torch

from diffusers_oneflow.verdict import HALF_FACTOR, Component, Error, pooled, rows_of


def row(theirs, ours):
    return Component("x", Error(*theirs), Error(*ours), HALF_FACTOR)


def test_one_unlucky_call_of_several_does_not_decide():
    calls = [[row((1e-3, 2e-3), (1.5e-3, 3e-3))], [row((1.5e-3, 3e-3), (1e-3, 2e-3))]]
    assert not pooled(calls[:1]).passed and pooled(calls).passed
    assert pooled(calls).ours.rms == pytest.approx(math.sqrt((1.5e-3**2 + 1e-3**2) / 2))
    assert pooled(calls).ours.maximum == pytest.approx(2.5e-3) and pooled(calls).ours.peak == 3e-3


@pytest.mark.parametrize("peak, passed", [(5.3e-3, True), (5.5e-3, False)])
def test_what_is_far_off_in_a_single_call_is_found(peak, passed):
    """On average it is not: 1.03 times torch's."""
    calls = [[row((1e-3, 3e-3), (1e-3, 3e-3))]] + [[row((1e-3, 2e-3), (1e-3, 2e-3))]] * 30
    found = pooled([*calls, [row((1e-3, 2e-3), (1e-3, peak))]])
    assert found.passed == passed and found.ours.maximum < 1.1 * found.torch.maximum
    said = "x: its largest (of several calls) error is 5.5e-03; allowed are 5.4e-03, since torch's is 3.0e-03"
    assert found.failures == ([] if passed else [said])


@pytest.mark.parametrize("scale, passed", [(1.0, True), (1.4, False)])
def test_chance_decides_of_no_small_output(scale, passed):
    """Of 32 calls of 32 numbers, as many as a pooled text has, the largest is above 1.2 times its like in one draw of 11."""
    noise, decided = torch.Generator().manual_seed(0), []
    for _ in range(50):
        theirs, ours = torch.randn(2, 32, 32, generator=noise, dtype=torch.float64).mul(1e-3).abs()
        largest = [[t.max().item() for t in errors] for errors in (theirs, scale * ours)]
        # The RMS, which is alike here, has a bar of its own.
        decided.append(pooled([[row((1e-3, a), (1e-3, b))] for a, b in zip(*largest)]).passed)
    assert decided == [passed] * 50


def test_what_is_worse_in_every_call_is_found():
    assert not pooled([[row((1e-3, 2e-3), (1.3e-3, 2e-3))]] * 8).passed
    assert not pooled([[row((1e-3, 2e-3), (1e-3, 2e-3))]] * 7 + [[row((1e-3, 2e-3), (math.inf, math.inf))]]).passed


def test_each_output_is_judged_by_itself():
    fine, bad = row((1e-3, 2e-3), (1e-3, 2e-3)), row((1e-3, 2e-3), (2e-3, 2e-3))
    assert pooled([[fine, bad], [fine, bad]]).ours.rms == pytest.approx(2e-3)


def test_of_outputs_that_pass_the_nearest_to_the_bar_is_said():
    far, near = row((1e-3, 2e-3), (0.5e-3, 1e-3)), row((1e-3, 2e-3), (0.9e-3, 2.3e-3))
    for calls in ([[far, near]], [[near, far]]):
        assert pooled(calls).ours == near.ours and pooled(calls).excess == pytest.approx(2.3 / 2.4)


@pytest.mark.parametrize("ours, excess", [(0.0, 0.0), (1e-9, math.inf)])
def test_where_nothing_is_allowed_anything_is_too_much(ours, excess):
    found = Component("x", Error(0.0, 0.0), Error(ours, ours), floor=0.0)
    assert found.excess == excess and found.passed == (excess == 0)


def test_half_types_have_one_row_for_each_output():
    exact = [torch.ones(4, dtype=torch.float64)] * 2
    found = rows_of("x", [torch.ones(4).half()] * 2, [torch.ones(4).half()] * 2, exact)
    assert [r.factor for r in found] == [HALF_FACTOR] * 2 and all(r.passed for r in found)


def test_a_call_in_which_torch_overflows_does_not_decide():
    lost = [row((math.inf, math.inf), (math.inf, math.inf))]
    bad, fine = [row((1e-3, 2e-3), (0.9, 0.9))], [row((1e-3, 2e-3), (1e-3, 2e-3))]
    assert not pooled([lost] + [bad] * 7).passed and pooled([lost] + [fine] * 7).passed and pooled([lost]).passed


def test_an_output_without_numbers_hides_no_other():
    lost, bad = row((math.inf, math.inf), (math.inf, math.inf)), row((1e-3, 2e-3), (0.9, 0.9))
    assert not pooled([[lost, bad]]).passed and not pooled([[bad, lost]]).passed
