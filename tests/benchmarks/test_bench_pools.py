import pytest

from benchmarks import children, pools


def runs(*pairs):
    """A run for each (alone, beside OneFlow) in milliseconds; all other phases are as alone."""
    return [
        {
            "ms": {"layers": {**dict.fromkeys(pools.PHASES, alone), "beside OneFlow": beside}},
            "threads": {},
            "torch_threads": [2, 2],
        }
        for alone, beside in pairs
    ]


def test_the_worst_phase_is_judged(capsys):
    assert pools.judge("default", pools.ratios(runs((10.0, 10.9), (20.0, 21.0), (30.0, 60.0))))
    assert not pools.judge("default", pools.ratios(runs((10.0, 11.5), (20.0, 23.0), (30.0, 31.0))))
    passed, failed = capsys.readouterr().out.splitlines()
    assert passed == "PASS default: layers, torch beside OneFlow / alone: 1.090 (bar: at most 1.1)"
    assert failed.startswith("FAIL")


def test_timing_leaves_out_what_is_between(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(pools.time, "perf_counter", lambda: clock[0])

    def take(seconds):
        clock[0] += seconds

    assert pools.timed(lambda: take(0.25), lambda: take(1.0), 3.0) == pytest.approx(0.25)


def test_a_process_goes_through_all_phases(capsys):
    found = children.call(pools.measure, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}, 0.01)
    assert all(list(phases) == list(pools.PHASES) for phases in found["ms"].values())
    assert all(ms > 0 for phases in found["ms"].values() for ms in phases.values())
    # The environment has reached torch's OpenMP, and OneFlow's threads are seen.
    assert found["torch_threads"] == [1, 1]
    assert found["threads"]["OneFlow ran"] > found["threads"]["torch ran"]
    pools.show({"default": {"ratios": pools.ratios([found]), "runs": [found]}})
    assert "1 -> 1" in capsys.readouterr().out


def test_torch_must_not_be_there_before():
    import torch  # noqa: F401

    with pytest.raises(RuntimeError, match="imported already"):
        pools.measure({}, 0.01)


def test_the_command_judges(monkeypatch, tmp_path):
    given = iter(runs((10.0, 10.0), (10.0, 10.0), (10.0, 12.0), (10.0, 12.0)))
    monkeypatch.setattr(children, "call", lambda *args: next(given))
    arguments = ["--only", "default", "--repeats", "2", "--out", str(tmp_path)]
    assert pools.main(arguments) == 0
    assert pools.main(arguments) == 1
    assert (tmp_path / "pools.json").exists()


def test_threads_are_counted():
    import threading

    def more() -> int:
        before, stop = pools.threads(), threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        counted = pools.threads() - before
        stop.set()
        thread.join()
        return counted

    assert pools.threads() >= threading.active_count()
    assert any(more() == 1 for _ in range(20))  # others begin and end meanwhile
