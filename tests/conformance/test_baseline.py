"""What counts as worse than the baseline, how cases are split, and what is not covered."""

import dataclasses
import json

import diffusers
import pytest

import conformance.cases  # noqa: F401 (registers them)
from conformance import baseline, coverage, shards
from conformance.registry import CASES, Case
from conformance.results import MAIN, Result


def component(path: str, ours: float, passed: bool = True) -> dict:
    torch, mine = {"rms": 1e-7, "maximum": 1e-7}, {"rms": ours, "maximum": ours}
    return {"path": path, "torch": torch, "ours": mine, "factor": 1.5, "floor": 1e-6, "passed": passed}


def result(ours: float = 2e-7, failures=(), fallbacks=None, path: str = "unet") -> Result:
    return Result("a", failures=list(failures), components=[component(path, ours)], fallbacks=fallbacks or {}, levels=0)


@pytest.fixture
def rows() -> dict:
    return {"a": json.loads(json.dumps(baseline.row(result())))}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (result(), None),
        (result(5.9e-7), None),
        (result(6.1e-7), "its error (rms) is 6.1e-07; in the baseline it was 2.0e-07"),
        (result(failures=["x"]), "passed in the baseline and fails now"),
        (result(fallbacks={"vae.decoder": "no kernel"}), "vae.decoder did not run in torch in the baseline: no kernel"),
        (result(path="prior"), "unet is not compared any more"),
        (dataclasses.replace(result(), levels=None), "the images are not compared any more"),
    ],
)
def test_a_regression_is_found(rows, now, said):
    found = baseline.regressions([now], rows)
    assert found == {} if said is None else said in found["a"][0]


def test_errors_below_what_rounding_makes_are_no_regression():
    rows = {"a": baseline.row(result(1e-8))}
    assert baseline.regressions([result(4.9e-7)], rows) == {}
    assert baseline.regressions([result(5.1e-7)], rows) != {}


def test_what_fails_in_the_baseline_is_known(rows):
    failing = {"a": baseline.row(result(failures=["x"]))}
    assert baseline.known_failures([result(failures=["x"])], failing) == {"a"}
    assert baseline.known_failures([result(failures=["x"])], rows) == set()
    assert baseline.known_failures([result()], failing) == set()


def test_a_known_failure_that_ends_before_it_compares_is_a_regression():
    failing = {"a": baseline.row(result(failures=["x"]))}
    crashed = Result("a", failures=["the process ended with exit code -11"])
    assert baseline.regressions([result(failures=["x"])], failing) == {}
    assert "the process ended" in baseline.regressions([crashed], failing)["a"][0]
    assert baseline.regressions([crashed], {"a": baseline.row(crashed)}) == {}


def test_an_update_keeps_other_rows_and_drops_vanished_ones(tmp_path, rows):
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"a": {}, "b": rows["a"], "gone": rows["a"]}))
    baseline.update(path, [result()], {"a", "b", "c"})
    assert baseline.read(path) == {"a": rows["a"], "b": rows["a"]}
    assert baseline.vanished({"gone": {}, "a": {}}, {"a", "b"}) == ["gone"]


def test_what_means_nothing_there_any_more_leaves_the_baseline(tmp_path, rows):
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"a": rows["a"], "b": rows["a"]}))
    baseline.update(path, [Result("a", not_applicable="torch cannot run it")], {"a", "b"})
    assert baseline.read(path) == {"b": rows["a"]}


def test_the_committed_baseline_names_existing_cases():
    rows = baseline.read(baseline.PATH)
    assert {"StableDiffusionPipeline", "t5", "aten.zeros.default"} <= set(rows)
    assert baseline.vanished(rows, CASES) == []


def test_every_case_has_a_row():
    missing = {name for name, case in CASES.items() if not case.full} - set(baseline.read(baseline.PATH))
    assert not missing, f"run python -m conformance --update-baseline with --only for each of {sorted(missing)}"


def test_the_committed_baseline_meets_what_the_project_promises():
    """At least 120 pipeline classes pass; of 20 pipelines at most one runs one of its main models in torch."""
    rows = {name: row for name, row in baseline.read(baseline.PATH).items() if CASES[name].level == "pipelines"}
    passed = {CASES[name].pipeline for name, row in rows.items() if row["passed"]} - {"", "Autoencoding"}
    aside = {name for name, row in rows.items() if any(path.split(".")[0] in MAIN for path in row["fallbacks"])}
    failed = {name for name, row in rows.items() if not row["passed"]}
    assert len(passed) >= 120
    assert len(aside) <= 0.05 * len(rows)
    assert len(aside | failed) <= 8


def test_shards_are_a_stable_partition_of_even_length():
    cases = [Case(f"c{i}", "", lambda: None) for i in range(40)]
    seconds = {f"c{i}": 1.0 + i % 7 for i in range(35)}
    parts = [shards.shard(cases, i + 1, 3, seconds) for i in range(3)]
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in cases)
    loads = [sum(seconds.get(c.name, 4.0) for c in part) for part in parts]
    assert max(loads) - min(loads) <= 7
    assert [c.name for c in shards.shard(cases[::-1], 1, 3, seconds)] == [c.name for c in parts[0]][::-1]
    with pytest.raises(ValueError, match="no shard 4 of 3"):
        shards.shard(cases, 4, 3, seconds)


def test_a_new_pipeline_of_diffusers_is_not_covered(monkeypatch):
    class NewPipeline(diffusers.DiffusionPipeline):
        def __init__(self, thing: object):
            pass

    class TwinPipeline(diffusers.DiffusionPipeline):
        def __init__(self, transformer: diffusers.PixArtTransformer2DModel, text_encoder: diffusers.AutoencoderKL):
            pass

    monkeypatch.setattr(diffusers, "NewPipeline", NewPipeline, raising=False)
    monkeypatch.setattr(diffusers, "TwinPipeline", TwinPipeline, raising=False)
    monkeypatch.setattr(type(diffusers), "__dir__", lambda self: ["NewPipeline", "TwinPipeline", "FluxPipeline"])
    assert coverage.not_covered() == {"NewPipeline": coverage.NO_REASON, "TwinPipeline": coverage.NO_REASON}
    monkeypatch.setattr(diffusers.FluxPipeline, "__init__", TwinPipeline.__init__)
    assert coverage.not_covered()["TwinPipeline"] == "same model classes as FluxPipeline"


def test_every_pipeline_has_a_case_or_is_listed():
    listed = coverage.not_covered()
    covered = {case.pipeline for case in CASES.values()}
    assert "DiffusionPipeline" not in listed and "AutoPipelineForText2Image" not in listed
    for name in dir(diffusers):
        made = getattr(diffusers, name) if name.endswith("Pipeline") and name != "DiffusionPipeline" else None
        if made is diffusers.ModularPipeline:
            continue
        if isinstance(made, type) and issubclass(made, (diffusers.DiffusionPipeline, diffusers.ModularPipeline)):
            assert (name in covered) != (name in listed), name
    assert listed["FluxModularPipeline"] == "same model classes as FluxFillPipeline"
    assert set(coverage.REASONS) <= set(listed)
