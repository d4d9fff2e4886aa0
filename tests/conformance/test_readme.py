"""The list of supported pipelines is what the baseline says."""

import pytest

from conformance import baseline, coverage, readme


@pytest.fixture(scope="module")
def found() -> dict:
    return readme.pipelines(baseline.read(baseline.PATH))


def test_what_is_committed_is_what_the_script_makes(found):
    again = "run python -m conformance.readme"
    assert readme.PAGE.read_text() == readme.page(found), again
    text = readme.README.read_text()
    assert text == readme.with_summary(text, readme.summary(found, "docs/pipelines.md")), again


def test_every_class_is_in_the_table_or_listed_as_without_a_case(found):
    page = readme.page(found)
    for name in coverage.pipelines():
        assert (f"| {name} |" in page) != (f"- `{name}`" in page), name


def test_a_case_that_fails_and_a_model_that_runs_in_torch_are_shown(found):
    name = "FluxPipeline"
    row = {"passed": False, "levels": 3, "fallbacks": {"transformer": "planted"}}
    changed = {**found, name: {**found[name], name: {**found[name][name], **row}}}
    page, said = readme.page(changed), readme.summary(changed)
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    assert "fails: plain" in line and "| 3 |" in line and "`transformer` (" in line
    assert ". `planted`" in page
    assert "at most 3 of 255" in said
    assert said != readme.summary(found)


def test_a_text_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="lacks the marks"):
        readme.with_summary("# A page\n", "words")
    made = readme.with_summary(f"a\n{readme.START}\nold\n{readme.END}\nb\n", "new")
    assert made == f"a\n{readme.START}\nnew\n{readme.END}\nb\n"
