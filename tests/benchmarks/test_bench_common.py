import json
import mmap

import pytest

from benchmarks import common


def test_summary_is_median_and_quartiles():
    assert common.summarize([5.0, 1.0, 3.0, 2.0, 4.0]) == common.Summary(3.0, 2.0, 4.0, 5)
    assert common.summarize([1.0, 2.0]) == common.Summary(1.5, 1.25, 1.75, 2)
    assert common.summarize([7.0]) == common.Summary(7.0, 7.0, 7.0, 1)
    assert common.Summary(0.0015, 0.001, 0.002, 3).show(1000, 1) == "1.5 (1.0-2.0)"


def test_summary_refuses_nothing():
    with pytest.raises(ValueError, match="no values"):
        common.summarize([])


def test_ratio_pairs_rounds():
    # A machine three times slower in the last round changes neither ratio.
    assert common.ratio([2.0, 4.0, 12.0], [1.0, 2.0, 6.0]) == common.Summary(2.0, 2.0, 2.0, 3)
    with pytest.raises(ValueError, match="2 rounds against 1"):
        common.ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("samples", "flat"),
    [
        ([100.0] * 20, True),
        ([50.0, 80.0, 99.0, *[100.0] * 17], True),  # what grows is only the start
        ([100.0 + i for i in range(20)], False),
        ([100.0] * 15 + [110.0] * 5, False),  # a late jump
        ([100.0] * 10 + [150.0] + [100.0] * 9, True),  # one sample, given back
        ([120.0 - i for i in range(20)], True),
    ],
)
def test_growth(samples, flat):
    assert common.growth(samples).flat is flat


def test_growth_measures_the_slope():
    found = common.growth([100.0 + i for i in range(20)])
    assert (found.first, found.last) == (105.5, 117.5)  # medians of samples 4 to 7 and 16 to 19
    assert found.slope == pytest.approx(15.0)


def test_growth_needs_samples():
    with pytest.raises(ValueError, match="too few"):
        common.growth([1.0, 2.0])


def test_interleaving_rotates_and_keeps_rounds_together():
    order = []
    turns = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    results = common.interleave(turns, 3)
    assert "".join(order) == "abcbcacab"
    assert results == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_a_turn_repeats_short_calls(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(common.time, "perf_counter", lambda: clock[0])
    calls = []

    def call(seconds):
        calls.append(seconds)
        clock[0] += seconds

    assert common.timed_turn(lambda: call(0.05), 0.2) == pytest.approx(0.05)
    assert len(calls) == 5  # one that warms up, four that count
    calls.clear()
    assert common.timed_turn(lambda: call(0.5), 0.2) == pytest.approx(0.5)
    assert len(calls) == 1


def test_memory_of_this_process():
    def more() -> tuple[int, int]:
        before = common.resident_bytes()
        with mmap.mmap(-1, 64 << 20) as block:  # what malloc gives may be there already
            block.write(b"x" * len(block))
            return common.resident_bytes() - before, common.peak_bytes() - before - len(block)

    # What other tests have left may be given back meanwhile.
    found = [more() for _ in range(10)]
    assert any((60 << 20) < grown < (68 << 20) for grown, _ in found)
    assert any(above >= -(4 << 20) for _, above in found)


def test_results_are_json(tmp_path):
    path = common.write("speed", {"machine": common.machine(), "x": common.summarize([1.0])}, str(tmp_path / "results"))
    assert path == tmp_path / "results" / "speed.json"
    read = json.loads(path.read_text())
    assert read["benchmark"] == "speed"
    assert read["x"] == {"median": 1.0, "low": 1.0, "high": 1.0, "count": 1}
    assert read["machine"]["cores"] >= 1
    assert common.write("speed", {}, str(tmp_path / "named.json")) == tmp_path / "named.json"
    assert common.write("speed", {}, None) is None


def test_verdict(capsys):
    assert common.verdict("memory", 1.1, 1.2)
    assert not common.verdict("memory", 1.3, 1.2)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["PASS", "FAIL"]
