"""The suite's own machinery, and a fast part of its cases; all of them run with `make conformance`."""

import json

import pytest

from conformance import registry
from conformance.__main__ import main
from diffusers_oneflow.parity import Component, Error, Report


def test_cases_are_named_once():
    assert len(registry.CASES) >= 12
    with pytest.raises(ValueError, match="two cases are called 't5'"):
        registry.case("t5")(lambda: None)


def test_list_names_every_case(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in registry.CASES)


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "t5"])
def test_a_small_case_passes(name, tmp_path):
    out = tmp_path / "numbers.json"
    assert main(["--only", name, "--json", str(out)]) == 0
    found = json.loads(out.read_text())[name]
    assert found["passed"]
    assert all(c["oneflow"]["rms"] > 0 for c in found["components"])


def test_a_failing_case_fails_the_suite_and_hides_no_other(monkeypatch, capsys):
    def broken():
        """Raises."""
        raise RuntimeError("planted")

    def wrong():
        """Too far off."""
        return Report([Component("x", Error(1e-7, 1e-7), Error(1e-3, 1e-3))])

    monkeypatch.setattr(registry, "CASES", dict(registry.CASES))
    monkeypatch.setattr("conformance.__main__.CASES", registry.CASES)
    registry.case("broken")(broken)
    registry.case("wrong")(wrong)
    assert main(["--only", "broken", "--only", "wrong", "--only", "t5"]) == 1
    said = capsys.readouterr().out
    assert "RuntimeError: planted" in said
    assert "1 of 3 cases passed" in said
    assert "failed: broken, wrong" in said


def test_an_unknown_case_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "sd9"])
    assert "unknown case sd9" in capsys.readouterr().err
