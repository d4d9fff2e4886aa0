"""Splits cases into parts of about the same time."""

from collections.abc import Sequence

from .registry import Case


def shard(cases: Sequence[Case], index: int, count: int, seconds: dict[str, float]) -> list[Case]:
    """Part `index` (from 1) of `count`, in the order of `cases`.

    The split depends on the names and the recorded seconds alone; a case without any counts as the median.

    Raises:
        ValueError: there is no such part.
    """
    if not 1 <= index <= count:
        raise ValueError(f"there is no shard {index} of {count}")
    recorded = sorted(seconds.values())
    median = recorded[len(recorded) // 2] if recorded else 1.0
    cost = {case.name: seconds.get(case.name, median) for case in cases}
    loads = [0.0] * count
    mine = set()
    # The longest first, each to the part that has the least so far.
    for name in sorted(cost, key=lambda name: (-cost[name], name)):
        lightest = loads.index(min(loads))
        loads[lightest] += cost[name]
        if lightest == index - 1:
            mine.add(name)
    return [case for case in cases if case.name in mine]
