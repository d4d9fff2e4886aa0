"""Writes docs/pipelines.md, and the summary of it in README.md, from the committed baseline: ``python -m conformance.readme``.

A test compares what is committed with what this makes.
"""

import textwrap
from pathlib import Path
from typing import Any

import diffusers

from . import baseline, cases, coverage  # noqa: F401 (cases fills the table)
from .registry import CASES

ROOT = Path(__file__).parents[1]
README, PAGE = ROOT / "README.md", ROOT / "docs/pipelines.md"
START, END = "<!-- pipelines: made by python -m conformance.readme -->", "<!-- end of pipelines -->"
_WIDTH = 130


def main() -> None:
    """Write both files."""
    rows = pipelines(baseline.read(baseline.PATH))
    PAGE.write_text(page(rows))
    README.write_text(with_summary(README.read_text(), summary(rows, "docs/pipelines.md")))


def pipelines(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Pipeline class of diffusers -> its cases and their rows of the baseline, sorted by name."""
    exported = coverage.pipelines()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in sorted(rows):
        if name in CASES and CASES[name].pipeline in exported:
            found.setdefault(CASES[name].pipeline, {})[name] = rows[name]
    return dict(sorted(found.items()))


def summary(found: dict[str, dict[str, dict[str, Any]]], link: str = "") -> str:
    """A paragraph of what runs how.

    Args:
        found: of `pipelines`.
        link: where the table is.
    """
    ran = [row for rows in found.values() for row in rows.values()]
    passed = sum(row["passed"] for row in ran)
    share = "all" if passed == len(ran) else passed
    whole = sum(not any(row["fallbacks"] for row in rows.values()) for rows in found.values())
    said = [
        f"{len(found)} of the {len(coverage.pipelines())} pipeline classes of diffusers {diffusers.__version__} are compared",
        f"with torch, with small random models in {len(ran)} cases, of which {share} pass.",
        f"In {whole} classes all models run on OneFlow;",
        f"in the other {len(found) - whole} one, or half of one, runs in torch, but for those parts that can be captured.",
        f"Final images differ by at most {max((row['levels'] or 0 for row in ran), default=0)} of 255 levels.",
    ]
    if link:
        said.append(f"[{link}]({link}) lists them, and the classes without a case.")
    return textwrap.fill(" ".join(said), _WIDTH, break_long_words=False, break_on_hyphens=False)


def with_summary(text: str, paragraph: str) -> str:
    """README's text with `paragraph` between the two marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md lacks the marks {START} and {END}")
    return f"{before}{START}\n{paragraph}\n{END}{after}"


def page(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The page of all pipelines."""
    reasons: dict[str, int] = {}
    table = [_line(name, rows, reasons) for name, rows in found.items()]
    listed = [f"- `{name}`" + (f": {why}" if why != coverage.NO_REASON else "") for name, why in coverage.not_covered().items()]
    return "\n".join([
        "# Supported pipelines", "",
        "<!-- Made by python -m conformance.readme from conformance/baseline.json: change that, not this. -->", "",
        summary(found), "",
        "Each case is one call of the stock pipeline on OneFlow and on torch, component by component against float64, and then",
        "the final image. Models are small and have random weights; the code is the pipeline's own. `conformance/README.md` says",
        "what is judged and how, `conformance/reports/cpu.md` has every error. A class that is not in the table may run as well:",
        "what counts are its models.", "",
        "| pipeline | cases | image, of 255 | runs in torch |", "| --- | --- | --- | --- |", *table, "",
        "## Why a model runs in torch", "", *(f"{number}. `{reason}`" for reason, number in reasons.items()), "",
        "## Without a case", "", *listed, "",
    ])  # fmt: skip


def _line(name: str, rows: dict[str, dict[str, Any]], reasons: dict[str, int]) -> str:
    variants = [case.removeprefix(name).lstrip("-") or "plain" for case in rows]
    wrong = [variant for variant, row in zip(variants, rows.values()) if not row["passed"]]
    levels = [row["levels"] for row in rows.values() if row["levels"] is not None]
    torch = {}
    for row in rows.values():
        for path, reason in row["fallbacks"].items():
            torch[path] = reasons.setdefault(reason, len(reasons) + 1)
    shown = ", ".join(variants) + (f"; fails: {', '.join(wrong)}" if wrong else "")
    aside = ", ".join(f"`{path}` ({number})" for path, number in torch.items())
    return f"| {name} | {shown} | {max(levels) if levels else ''} | {aside} |"


if __name__ == "__main__":
    main()
