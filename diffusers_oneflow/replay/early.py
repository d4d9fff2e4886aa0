"""What of a graph does not depend on the latents: it may run beside the rest, which is too small a work for a whole GPU."""

import math
from dataclasses import dataclass

from .values import Step

# Results of such a group have memory of their own, since nobody knows what runs at the same time.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Group:
    """Steps that need the same inputs, the timestep or the prompt say.

    Attributes:
        steps: in order.
        first_use: the number of the step of the rest that must wait for them; None if only outputs do.
    """

    steps: list[Step]
    first_use: int | None


def split(steps: list[Step], latents: int | None) -> tuple[list[Group], list[Step]]:
    """The groups, those first that the rest waits for first, but each after those that it reads; and the rest in its order.

    Args:
        latents: the number of the input that the rest depends on; without one there is no group.
    """
    if latents is None:
        return [], steps
    needs: dict[Step, frozenset[int]] = {}
    for step in steps:
        own = frozenset(s for s in step.sources if isinstance(s, int))
        needs[step] = own.union(*(needs[s] for s in step.sources if isinstance(s, Step)))
    kinds: dict[frozenset[int], list[Step]] = {}
    for step in steps:
        if latents not in needs[step]:
            kinds.setdefault(needs[step], []).append(step)
    taken: list[list[Step]] = []
    inside: set[Step] = set()
    for kind in sorted(kinds, key=len):
        group = kinds[kind] if kind else _smallest(kinds[kind])
        known = inside.union(group)
        complete = all(s in known for step in group for s in step.sources if isinstance(s, Step))
        if complete and sum(s.like.nbytes for s in group) <= _MOST_BYTES:
            taken.append(group)
            inside = known
    rest = [s for s in steps if s not in inside]
    if not rest:
        return [], steps
    return _in_order([Group(group, _first_use(set(group), rest)) for group in taken]), rest


def _smallest(group: list[Step]) -> list[Step]:
    """Of steps that need no input, sums of filters and constants say, as many as there may be, the smallest first."""
    room, chosen = _MOST_BYTES, set()
    for step in sorted(group, key=lambda s: s.like.nbytes):
        room -= step.like.nbytes
        if room >= 0:
            chosen.add(step)
    found: list[Step] = []
    for step in group:
        if step in chosen and all(source in found for source in step.sources):
            found.append(step)
    return found


def _in_order(groups: list[Group]) -> list[Group]:
    by = {step: group for group in groups for step in group.steps}
    order: list[Group] = []

    def put(group: Group) -> None:
        for other in {id(by[s]): by[s] for step in group.steps for s in step.sources if isinstance(s, Step)}.values():
            if other is not group:
                put(other)
        if not any(known is group for known in order):
            order.append(group)

    for group in sorted(groups, key=lambda g: math.inf if g.first_use is None else g.first_use):
        put(group)
    return order


def _first_use(group: set[Step], rest: list[Step]) -> int | None:
    return next((step.number for step in rest if any(s in group for s in step.sources)), None)
