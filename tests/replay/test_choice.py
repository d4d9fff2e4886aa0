"""Ways to compute a step are measured in the graph that they are for; what was found is kept, and read again."""

import json
from typing import ClassVar

import pytest
import torch

from diffusers_oneflow.replay.cuda import choice, cute_ahead, kept

GPU = torch.device("cuda", 0)


class Clock:
    """The time on a GPU whose kernels take as long as they say."""

    now = 0.0


class Event:
    """A place in a graph, at the time at which it was last passed."""

    def record(self):
        Graph.doing.append(lambda: setattr(self, "at", Clock.now))

    def elapsed_time(self, end):
        return end.at - self.at


class Graph:
    """What was done while it was recorded is done again."""

    doing: ClassVar[list] = []

    def __init__(self, steps, out):
        Graph.doing = []
        for step in steps:
            step(out)
        self.done, Graph.doing = Graph.doing, []

    def replay(self):
        for do in self.done:
            do()


class Step(choice.Ways):
    """Ways that take some milliseconds each, and say how they fail.

    Args:
        ways: for each, milliseconds, or None for one that raises; or ``(milliseconds, what it makes)``.
        fails_in_graphs: the numbers of those that work only outside.
    """

    def __init__(self, *ways, spare=0, kind="kind", fails_in_graphs=()):
        super().__init__()
        self.given, self.spare, self.kind, self.fails = ways, spare, kind, fails_in_graphs
        self.ran: list[int] = []

    def __call__(self, out):
        self._compute(self.kind, (out,), GPU, self.spare)

    def _ways(self, out):
        return [(lambda out, n=n: self.run(n, out), f"way {n}") for n in range(len(self.given))]

    def run(self, number, out):
        takes, makes = self.given[number] if isinstance(self.given[number], tuple) else (self.given[number], 1.0)
        recording = choice._open is not None and choice._open._marks is not None
        if isinstance(takes, Exception):
            raise takes
        if takes is None or (recording and number in self.fails):
            raise RuntimeError("not on this GPU")
        self.ran.append(number)
        makes(out) if callable(makes) else out.fill_(makes)
        Graph.doing.append(lambda: setattr(Clock, "now", Clock.now + takes))


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "kernels.json"
    monkeypatch.setattr(kept, "_file", lambda device: path)
    monkeypatch.setattr(choice, "_event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    kept.known.cache_clear()
    yield path
    kept.known.cache_clear()


def settled(*steps, shape=(4,), dtype=torch.float32) -> list[int]:
    """The numbers of the ways that are taken."""
    out = torch.zeros(shape, dtype=dtype)
    with choice.measuring(0) as session:
        for step in steps:
            step(out)
        session.settle(lambda: Graph(steps, out).replay)
    return [int(step.name.removeprefix("way ")) for step in steps]


def test_the_fastest_that_runs_is_taken_and_kept(file):
    assert settled(Step(3.0, None, 1.0, 2.0, 0.1, spare=1)) == [2]
    ((key, number),) = json.loads(file.read_text()).items()
    assert key.startswith("('kind', 5, ") and number == 2
    kept.known.cache_clear()
    again = Step(0.5, 1.0, 9.0, 1.0, 1.0, spare=1)
    assert settled(again) == [2] and set(again.ran) == {2}  # nothing is measured


def test_steps_of_one_kind_are_judged_by_what_all_take_together():
    assert settled(Step(1.0, 2.0), Step(5.0, 2.0), Step(1.0, 2.0, kind="other")) == [1, 1, 0]


def test_what_is_compiled_elsewhere_is_found_in_the_next_run(file):
    other = Step(3.0, 1.0, kind="other")
    step, ready = Step(3.0, cute_ahead.Deferred("flash"), 2.0, 0.1, spare=1), (3.0, 1.0, 2.0, 0.1)
    out = torch.zeros(4)
    with choice.measuring(0) as session:
        for one in (other, step):
            one(out)
        assert step.name == "" and step.ran[-1] == 0 and out[0] == 1.0  # never what is spare
        assert session.pending == [other]
        step.given = ready
        for one in (other, step):
            one(out)
        session.settle(lambda: Graph([other, step], out).replay)
    assert (other.name, step.name) == ("way 1", "way 1")
    kept.known.cache_clear()
    again = Step(3.0, cute_ahead.Deferred("flash"), 2.0, 0.1, spare=1)
    with choice.measuring(0):
        again(out)
        assert again.name == "" and again.ran[-1] == 0
        again.given = ready
        again(out)
    assert again.name == "way 1"


def test_meanwhile_what_has_no_room_is_said():
    deferred, short = cute_ahead.Deferred("flash"), torch.OutOfMemoryError("short")
    out = torch.zeros(4)
    with choice.measuring(0):
        with pytest.raises(torch.OutOfMemoryError, match="short"):
            Step(deferred, short, None)(out)
        with pytest.raises(RuntimeError, match="no kernel computes this"):
            Step(deferred, None)(out)
        working = Step(deferred, short, 1.0)
        working(out)
        assert working.ran == [2] and working.name == ""


def test_a_graph_with_the_ways_that_were_taken_computes_each_step_once():
    step = Step(3.0, 1.0)
    assert settled(step) == [1]
    step.ran.clear()
    step(torch.zeros(4))
    assert step.ran == [1] and step.able == {}


def test_what_was_kept_and_does_not_run_is_measured_again(file):
    file.write_text(json.dumps({"('kind', 3, 'way 0', 'way 1', 'way 2')": 1, "'other'": "x"}))
    assert settled(Step(3.0, None, 1.0)) == [2]


@pytest.mark.parametrize("text", ["[", "[1]", "{"])
def test_a_damaged_file_is_measured_anew(file, text):
    file.write_text(text)
    assert settled(Step(2.0, 1.0)) == [1]


def test_what_is_spare_is_taken_where_nothing_else_runs():
    assert settled(Step(None, None, 4.0, spare=1)) == [2]
    with pytest.raises(RuntimeError, match="no kernel computes this: not on this GPU"):
        settled(Step(None, None, kind="other"))


def test_memory_that_is_short_is_said_as_such():
    with pytest.raises(torch.OutOfMemoryError):
        settled(Step(torch.OutOfMemoryError("no room"), torch.OutOfMemoryError("no room")))


def test_a_way_that_works_outside_of_graphs_only_is_left_out():
    assert settled(Step(3.0, 1.0, 2.0, fails_in_graphs=(1,))) == [2]


def test_measuring_ends_with_its_time(monkeypatch):
    monkeypatch.setattr(choice, "SECONDS", 0.0)
    assert settled(Step(2.0, 1.0, 1.0)) == [0]


def test_a_way_that_computes_something_else_is_left_out():
    steps = [Step(3.0, (1.0, 1.2), 2.0, 9.0, spare=1) for _ in range(2)]
    with pytest.warns(UserWarning, match=r"left out: 1 \(way 1\) of \('kind', 4"):
        assert settled(*steps) == [2, 2]


def column(out):
    out.fill_(1.0)[..., 77] = 2.0


def partly(out):
    out[: len(out) // 2] = 1.0


@pytest.mark.parametrize("wrong", [column, partly, float("nan"), float("inf"), lambda out: None])
def test_no_fault_is_overlooked(wrong):
    steps = [Step(3.0, (1.0, wrong), 9.0, spare=1)]
    with pytest.warns(UserWarning, match=r"left out: 1 \(way 1\)"):
        assert settled(*steps, shape=(64, 64, 1, 128)) == [0]


def test_results_that_are_not_finite_agree():
    def makes(out):
        out.fill_(1.0)[0] = float("nan")

    assert settled(Step((3.0, makes), (1.0, makes))) == [1]


def test_memory_that_ends_while_ways_are_measured_leaves_what_was_measured():
    class Short(Graph):
        made = 0

        def __init__(self, steps, out):
            Short.made += 1
            if Short.made == 3:
                raise torch.OutOfMemoryError("no room")
            super().__init__(steps, out)

    step, out = Step(3.0, 2.0, 1.0), torch.zeros(4)
    with choice.measuring(0) as session:
        step(out)
        session.settle(lambda: Short([step], out).replay)
    assert step.name == "way 1" and kept.known(0) == {}  # another process may have the room


def test_a_slow_graph_is_measured_once_and_nothing_kept_that_was_not(monkeypatch):
    monkeypatch.setattr(choice, "_SLOW", -1.0)
    monkeypatch.setattr(choice, "SECONDS", 0.0)
    step = Step(2.0, 1.0)
    assert settled(step) == [0] and kept.known(0) == {}


def test_ways_that_round_differently_agree():
    assert settled(Step(3.0, (1.0, 1.004), 2.0)) == [1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_results_that_are_no_floats_are_compared_too(dtype):
    assert settled(Step(3.0, 2.0), dtype=dtype) == [1]
    nothing = (1.0, lambda out: None)
    with pytest.warns(UserWarning, match="left out"):
        assert settled(Step(nothing, (3.0, 0), (2.0, 0), kind="other"), dtype=dtype) == [2]


def test_where_all_are_wrong_torch_computes():
    with pytest.warns(UserWarning, match="left out"):
        assert settled(Step((1.0, 3.0), (2.0, 2.0), 9.0, spare=1)) == [2]


def test_off_a_gpu_what_needs_no_library_is_taken(monkeypatch):
    monkeypatch.setattr(Step, "__call__", lambda self, out: self._compute("kind", (out,), torch.device("cpu"), 1))
    step = Step(1.0, 2.0)
    step(torch.zeros(4))
    assert step.ran == [1]


def test_ways_are_tried_once_for_steps_of_a_kind():
    out = torch.zeros(4)
    steps = [Step(2.0, 1.0, 3.0) for _ in range(4)]
    with choice.measuring(0):
        for step in steps:
            step(out)
    tried = [len(step.ran) for step in steps]
    assert tried[1:] == [tried[1]] * 3 and tried[1] < tried[0] and all(len(step.able) == 3 for step in steps)


def test_a_step_that_cannot_do_what_others_of_its_kind_do_is_tried_by_itself():
    out = torch.zeros(4)
    steps = [Step(1.0, 2.0), Step(None, 2.0), Step(1.0, 2.0)]
    with choice.measuring(0):
        for step in steps:
            step(out)
    assert [list(step.able) for step in steps] == [[0, 1], [1], [0, 1]]


def test_a_way_that_had_no_room_is_tried_again_by_the_next_step():
    out = torch.zeros(4)
    steps = [Step(torch.OutOfMemoryError("planted"), 2.0), Step(1.0, 2.0)]
    with choice.measuring(0):
        for step in steps:
            step(out)
    assert [list(step.able) for step in steps] == [[1], [0, 1]]


def test_what_is_kept_is_of_one_version_of_each_package(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(kept, "directory", lambda: tmp_path)
    there = {"triton": "3.6.0"}

    def file():
        kept._file.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(kept, "version", there.get)
            return kept._file(0)

    try:
        first = file()
        assert file() == first and kept.version("pytest") == pytest.__version__ and kept.version("no-such-package") is None
        there["quack-kernels"] = "0.6.4"
        second = file()
        there["quack-kernels"] = "0.6.5"
        assert len({first, second, file()}) == 3
    finally:
        kept._file.cache_clear()
