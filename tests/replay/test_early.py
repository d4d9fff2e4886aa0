"""What of a graph may run beside the rest."""

from diffusers_oneflow.replay import early
from diffusers_oneflow.replay.values import Ref, Step, dense

LATENTS, TIME, PROMPT = range(3)


class Steps(list):
    """Steps of one number each."""

    def add(self, *sources, numbers=1):
        args = tuple(Ref(s, dense((1,), dense((1,), None).dtype)) for s in sources)
        self.append(Step(lambda out: None, args, dense((numbers,), dense((1,), None).dtype), "op", "kernel", "", len(self)))
        return self[-1]


def test_groups_by_what_they_need_and_the_first_to_wait_for_them():
    steps = Steps()
    time = steps.add(TIME)
    start = steps.add(LATENTS)
    embedded = steps.add(time)
    prompt = steps.add(PROMPT)
    both = steps.add(prompt, embedded)
    middle = steps.add(start, embedded)
    end = steps.add(middle, both)
    groups, rest = early.split(steps, LATENTS)
    assert [g.steps for g in groups] == [[time, embedded], [prompt], [both]]
    assert rest == [start, middle, end]
    assert [g.first_use for g in groups] == [middle.number, None, end.number]


def test_what_would_take_much_memory_stays_and_what_reads_it():
    steps = Steps()
    large = steps.add(TIME, numbers=early._MOST_BYTES)
    reader = steps.add(large, PROMPT)
    small = steps.add(PROMPT)
    last = steps.add(LATENTS, reader, small)
    groups, rest = early.split(steps, LATENTS)
    assert [g.steps for g in groups] == [[small]] and rest == [large, reader, last]


def test_without_latents_all_stays():
    steps = Steps()
    steps.add(TIME)
    assert early.split(steps, None) == ([], steps)
    assert early.split(steps, LATENTS) == ([], steps)


def test_what_brings_its_own_memory_is_kept_until_both_branches_have_read_it():
    from diffusers_oneflow.replay.graph import _last_uses

    steps = Steps()
    start = steps.add(LATENTS)
    own = steps.add(PROMPT)
    own.own = True
    first = steps.add(start, own)
    aside = steps.add(own)
    end = steps.add(first, aside)
    groups, rest = early.split(steps, LATENTS)
    order = [s for g in groups for s in g.steps] + rest
    assert _last_uses(order, []) == {first: [own]} and order.index(aside) < order.index(first)
    assert _last_uses(order, [Ref(own, own.like)]) == {} and rest[-1] is end


def test_who_is_waited_for_first_comes_first():
    steps = Steps()
    filters = steps.add()
    time = steps.add(TIME)
    prompt = steps.add(PROMPT)
    scale = steps.add(prompt, time)
    first = steps.add(LATENTS, time)
    second = steps.add(first, scale)
    steps.add(second, filters)
    groups, _ = early.split(steps, LATENTS)
    assert [g.steps for g in groups] == [[time], [prompt], [scale], [filters]]


def test_of_what_needs_no_input_the_smallest_go_first():
    steps = Steps()
    filters = [steps.add(numbers=early._MOST_BYTES // 10) for _ in range(3)]
    constant = steps.add()
    late = steps.add(filters[2])
    time = steps.add(TIME, constant)
    latents = steps.add(LATENTS, time)
    last = steps.add(latents, *filters, late)
    size = filters[0].like.nbytes
    assert 3 * size > early._MOST_BYTES > 2 * size
    groups, rest = early.split(steps, LATENTS)
    assert [g.steps for g in groups] == [[*filters[:2], constant], [time]] and rest == [filters[2], late, latents, last]
