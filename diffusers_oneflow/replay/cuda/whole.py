"""Between ways that take nearly as long, the time of the whole graph decides, at the clock that the GPU keeps up.

A large model runs at the GPU's limit of power. There a kernel that takes less of it makes all others faster, which its own time
does not say, nor does a graph that runs once.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

# After so many seconds nothing else is tried; of kinds of steps that take so many milliseconds together.
SECONDS, LONG = 6.0, 10.0
# Ways of a kind that are tried, where they take at most so many times as long as the fastest.
_MOST, _NEAR = 2, 1.15
# A graph that takes so much less is better, and not by chance.
_GAIN = 0.002
# Seconds for which a graph runs until the GPU keeps to a clock, and for which it is timed then.
_WARM, _TIMED = 0.15, 0.25
_now = time.perf_counter


class Step(Protocol):
    """As in `choice.Ways`."""

    key: str
    number: int

    @property
    def able(self) -> Mapping[int, object]: ...

    def take(self, number: int) -> None: ...


def refine(
    steps: Sequence[Step],
    took: Mapping[str, Mapping[int, float]],
    record: Callable[[], Callable[[], None]],
    wait: Callable[[], None],
) -> None:
    """Take other ways where the whole graph is faster for it, those kinds of steps first that take the most time.

    Args:
        steps: each with its fastest way taken.
        took: for each kind of step, milliseconds of one by number of its way.
        record: captures all steps, each as it is taken, in a graph; returns what runs that.
        wait: until the graph is done.
    """
    kinds: dict[tuple[str, int], list[Step]] = defaultdict(list)
    for step in steps:
        if step.number in took.get(step.key, {}):
            kinds[step.key, step.number].append(step)
    together = {kind: len(alike) * took[kind[0]][kind[1]] for kind, alike in kinds.items()}
    if sum(together.values()) < LONG:
        return
    until = _now() + SECONDS
    best = _lasting(record(), wait)
    for kind in sorted(kinds, key=lambda kind: -together[kind]):
        alike, (key, taken) = kinds[kind], kind
        for number in _others(alike, took[key]):
            if _now() > until:
                return
            try:
                _take(alike, number)
                ms = _lasting(record(), wait)
            except torch.OutOfMemoryError:  # there is room for what was measured before
                return _take(alike, taken)
            if ms < (1 - _GAIN) * best:
                best, taken = ms, number
            else:
                _take(alike, taken)


def _take(steps: Sequence[Step], number: int) -> None:
    for step in steps:
        step.take(number)


def _others(steps: Sequence[Step], took: Mapping[int, float]) -> list[int]:
    """Ways of steps of a kind that are nearly as fast as the one that they take, the fastest first."""
    taken = steps[0].number
    near = [n for n, ms in took.items() if n != taken and ms <= _NEAR * took[taken] and all(n in step.able for step in steps)]
    return sorted(near, key=took.__getitem__)[:_MOST]


def _lasting(replay: Callable[[], None], wait: Callable[[], None]) -> float:
    """Milliseconds of one run among many."""
    started, count = _now(), 0
    while count == 0 or _now() - started < _WARM:
        replay()
        wait()
        count += 1
    count = max(1, int(_TIMED * count / (_now() - started)))
    started = _now()
    for _ in range(count):
        replay()
    wait()
    return 1e3 * (_now() - started) / count
