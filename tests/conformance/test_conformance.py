"""The suite's own machinery, and a fast part of its cases; all of them run with `make conformance`."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from conformance import baseline, pictures, registry, report, results, runner
from conformance.__main__ import main
from diffusers_oneflow import lowering
from diffusers_oneflow.parity import Component, Error, Report

UNDEFINED = {"aten.empty.memory_format", "aten.empty_like.default"}  # what they give cannot be compared


@pytest.fixture
def table(monkeypatch):
    """The table of cases; what a test adds to it goes with the test."""
    made = dict(registry.CASES)
    for module in ("registry", "__main__", "runner"):
        monkeypatch.setattr(f"conformance.{module}.CASES", made)
    return made


def test_cases_are_named_once():
    assert len(registry.CASES) >= 300
    with pytest.raises(ValueError, match="two cases are called 't5'"):
        registry.case("t5")(broken)


def test_list_names_every_case_and_what_has_none(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in registry.CASES)
    assert "OnnxStableDiffusionPipeline " in said and "not covered: needs onnx" in said


def test_a_level_and_a_pattern_choose(capsys):
    assert main(["--list", "--level", "ops"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(lowering.lowered_ops()) - UNDEFINED
    assert main(["--list", "--level", "models", "--only", "model-sd3*"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "model-sd3", "model-sd3.5", "model-sd3-bf16",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "model-unet"])
def test_a_small_case_passes(name, tmp_path):
    out = tmp_path / "numbers.json"
    assert main(["--only", name, "--json", str(out)]) == 0
    found = json.loads(out.read_text())["results"][name]
    assert found["passed"]
    assert all(c["ours"]["rms"] > 0 for c in found["components"])
    assert (set(found["pictures"]) == {"torch", "ours", "difference"}) == (found["level"] == "pipelines")


def test_an_op_is_judged_with_every_kind_of_kernel_and_dtype(tmp_path):
    out = tmp_path / "numbers.json"
    assert main(["--only", "aten.layer_norm.default", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["results"]["aten.layer_norm.default"]
    names = ("(OneFlow) float32", "(OneFlow) float64", "(pack) float32", "(pack) float64")
    assert [c["path"] for c in found["components"]] == [f"aten.layer_norm.default {n}" for n in names]
    assert [c["torch"]["rms"] > 0 for c in found["components"]] == [True, False, True, False]


def broken():
    """Raises."""
    raise RuntimeError("planted")


def wrong():
    """Too far off."""
    images = np.full((1, 8, 8, 3), 7, np.uint8), np.full((1, 8, 8, 3), 9, np.uint8)
    return Report([Component("x", Error(1e-7, 1e-7), Error(1e-3, 1e-3))], 2, {"y": "no <kernel>"}, ("y",), images)


@pytest.fixture
def failing(table):
    registry.case("broken")(broken)
    registry.case("wrong")(wrong)
    return ["--only", "broken", "--only", "wrong", "--only", "t5"]


def test_a_failing_case_fails_the_suite_and_hides_no_other(failing, capsys):
    assert main(failing) == 1
    said = capsys.readouterr().out
    assert "RuntimeError: planted" in said
    assert "y ran in torch, which was not expected: no <kernel>" in said
    assert "1 of 3 cases passed" in said
    assert "failed: broken, wrong" in said


def test_what_fails_in_the_baseline_fails_the_suite_only_when_strict(failing, tmp_path, capsys):
    kept = ["--baseline", str(tmp_path / "b.json")]
    failing = failing[:-2]  # without the one that passes
    assert main([*failing, *kept, "--update-baseline"]) == 0
    assert main([*failing, *kept]) == 0
    assert "known to fail: broken, wrong" in capsys.readouterr().out
    assert main([*failing, *kept, "--strict"]) == 1


def test_a_case_that_vanished_fails_the_suite(table, tmp_path, capsys):
    kept = tmp_path / "b.json"
    baseline.update(kept, [results.Result("gone")], ["gone"])
    assert main(["--only", "t5", "--baseline", str(kept)]) == 1
    assert "vanished: gone" in capsys.readouterr().out


def test_reports_say_what_is_wrong_and_show_it(failing, tmp_path):
    """They are the same when made from the JSON of the run."""
    paths = {kind: tmp_path / f"report.{kind}" for kind in report.WRITERS}
    assert main([*failing, *(f"--{kind}={path}" for kind, path in paths.items())]) == 1
    page = paths["html"].read_text()
    for said in ("x: its RMS error is 1.0e-03", "no &lt;kernel&gt;", "RuntimeError: planted", "at most 2 of 255, stretched"):
        assert said in page
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "http" not in page.replace("xmlns", "")
    suite = ElementTree.parse(paths["junit"]).getroot()
    verdicts = {test.get("name"): [child.tag for child in test] for test in suite}
    assert verdicts["broken"] == verdicts["wrong"] == ["failure"] and verdicts["t5"] == []
    assert verdicts["OnnxStableDiffusionPipeline"] == ["skipped"]
    assert suite.get("failures") == "2" and int(suite.get("tests")) == len(suite)
    assert "| wrong | x | 1.0e-07 | 1.0e-03 | 2 |" in paths["markdown"].read_text()
    again = tmp_path / "again.html"
    assert main([*failing, "--from", str(paths["json"]), "--html", str(again)]) == 1
    assert again.read_text() == page
    assert main(["--only", "t5", "--only", "model-clip_text", "--from", str(paths["json"]), "--junit", str(again)]) == 1
    assert '<testcase name="model-clip_text"' in again.read_text() and "none of the given results has it" in again.read_text()
    assert main(["--only", "t5", "--only", "model-clip_text", "--from", str(paths["json"]), "--markdown", str(again)]) == 1
    assert "## Not run\n\n- model-clip_text\n" in again.read_text()


def test_a_report_says_how_far_off_models_are_beside_torch():
    """Over all of them, the ops and what torch computes exactly left out."""
    one = {"torch": {"rms": 2e-4, "maximum": 1.0}, "ours": {"rms": 0.0, "maximum": 0.0}}
    rows = [{**one, "ours": {"rms": share * 2e-4, "maximum": 0.0}} for share in (0.5, 0.7, 1.9)]
    exact = {**one, "torch": {"rms": 0.0, "maximum": 0.0}, "ours": {"rms": 1e-9, "maximum": 0.0}}
    ran = [results.Result("a", components=rows[:2]), results.Result("b", level="models", components=[*rows[2:], exact])]
    run = report.Run("oneflow", [*ran, results.Result("op", level="ops", components=[{**one, "ours": one["torch"]}] * 9)])
    said = "0.70 of torch's own in the median of 3 comparisons, 1.66 at the 90th percentile, 1.90 at most"
    assert run.counts["RMS errors of models"] == said


def test_a_case_that_ends_its_process_fails_alone(capfd):
    """The next one runs in a new process."""
    worker = registry.CASES["t5"]
    abort = registry.Case("aborts", "", lambda: None)
    found = runner.run_all([worker, abort, worker], Console(), isolated=True)
    assert [r.passed for r in found] == [True, False, True]
    assert "the process ended with exit code 1" in found[1].failures[0]
    assert found[0].components == found[2].components


def test_processes_beside_each_other(capfd, monkeypatch):
    """Results in the order of the cases, each worker with cores of its own and silent; one that ends fails its case alone."""
    allowed = {}

    class Seen(runner.Worker):
        def run(self, case):
            result = super().run(case)
            if result.passed:
                allowed[case.name] = os.sched_getaffinity(self._process.pid)
            return result

    monkeypatch.setattr(runner, "Worker", Seen)
    cases = [registry.CASES["aten.abs.default"], registry.Case("aborts", "", lambda: None), registry.CASES["aten.neg.default"]]
    told = []
    found = runner.run_in_workers(cases, 2, told.append)
    assert [r.name for r in found] == [case.name for case in cases] and [r.passed for r in found] == [True, False, True]
    assert sorted(r.name for r in told) == sorted(r.name for r in found)
    assert "Error against float64" not in capfd.readouterr().out
    mine = sorted(os.sched_getaffinity(0))
    assert len(allowed) == 2 and all(cores in (set(mine[::2]), set(mine[1::2] or mine)) for cores in allowed.values())


NAMED = [registry.Case(str(number), "", lambda: None) for number in range(4)]


@pytest.mark.parametrize("half", [False, True])
def test_a_process_that_ends_between_two_cases_takes_no_result_with_it(monkeypatch, half):
    """Or while it writes one."""

    class Brief(runner.Worker):
        def __init__(self, **how):
            mine, theirs = os.pipe()
            text = "import json, os, sys; name = sys.stdin.readline().strip()\n"
            text += f"os.write({theirs}, (json.dumps({{'name': name, 'fit': True}}) + '\\n').encode()[: {5 if half else None}])"
            self._process = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, text=True, pass_fds=[theirs])
            os.close(theirs)
            self._names, self._answers, self.fit = self._process.stdin, os.fdopen(mine), True

        def run(self, case):
            made = super().run(case)
            self._process.wait()
            return made

    monkeypatch.setattr(runner, "Worker", Brief)
    found = runner.run_in_workers(NAMED, 1)
    assert [r.passed for r in found] == ([False] * 4 if half else [True, False] * 2)
    assert all("the process ended with exit code 0" in r.failures[0] for r in found if not r.passed)


def test_what_no_process_can_be_started_for_fails_alone(monkeypatch):
    tried = []

    class Short(runner.Worker):
        def __init__(self, **how):
            tried.append(how)
            raise BlockingIOError("no more processes")

    monkeypatch.setattr(runner, "Worker", Short)
    found = runner.run_in_workers(NAMED, 2)
    assert len(found) == len(tried) == 4 and all("BlockingIOError: no more processes" in r.failures[0] for r in found)


@pytest.mark.parametrize("times", [1, 2])
def test_who_interrupts_gets_what_is_there(monkeypatch, times):
    """During the second case; who does so twice does not wait for it."""
    asked, left = [], [KeyboardInterrupt] * times
    second, goes_on = threading.Event(), threading.Event()

    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            plain = future.result

            def result():
                assert second.wait(60)
                if left:
                    raise left.pop()
                goes_on.set()
                return plain()

            future.result = result
            return future

    class Quick(runner.Worker):
        def __init__(self, **how):
            self.fit = True

        def run(self, case):
            asked.append(case.name)
            if len(asked) == 2:
                second.set()
                assert goes_on.wait(60)
            return results.of_reason(case, "", 0.0)

        def stop(self):
            pass

        def kill(self):
            goes_on.set()

    monkeypatch.setattr(runner, "Worker", Quick)
    monkeypatch.setattr(runner, "ThreadPoolExecutor", Interrupted)
    found = [r.name for r in runner.run_in_workers(NAMED, 1)]
    assert asked == ["0", "1"] and found == ["0", "1"][: 3 - times]


@pytest.mark.parametrize(
    ("drawn", "shape"),
    [((2, 8, 9, 3), (8, 9, 3)), ((2, 5, 8, 9, 3), (8, 9, 3)), ((1, 8, 9, 1), (8, 9)), ((1, 8, 9, 6), (8, 9, 3)),
     ((2, 16, 8, 9), (8, 9)), ((1, 4, 3, 8, 9), (8, 9)), ((1, 2, 400), (400,)), ((1, 32), (32,)), ((5, 3, 3), (3,))],
)  # fmt: skip
def test_of_everything_that_is_drawn_there_is_a_picture(drawn, shape):
    array = np.random.default_rng(0).integers(0, 256, drawn, np.uint8)
    assert pictures.flat(array).shape == shape
    made = pictures.of(array, array)
    assert made["torch"] == made["ours"] != made["difference"]


def test_results_of_something_else_are_refused(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(SystemExit):
        main(["--from", str(tmp_path / "x.json")])
    assert "holds no results of this suite" in capsys.readouterr().err


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "sd9"])
    assert "unknown case sd9" in capsys.readouterr().err
