"""The committed baseline: what each case gave when it was last looked at, and what is worse now."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .results import Result

PATH = Path(__file__).with_name("baseline.json")
# An error counts as worse from this factor on, if it is above this part of the output's scale: another processor rounds
# otherwise, and float32 carries 1.2e-7.
WORSE, NOTICED = 3.0, 5e-7
_MEASURES = ("rms", "maximum")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> what `row` made of a case; empty if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def update(path: Path, results: list[Result], known: Iterable[str]) -> None:
    """Write `results` over their old rows; rows of cases that are not `known` any more, or mean nothing there now, go."""
    rows = {**read(path), **{r.name: row(r) for r in results}}
    kept = sorted(set(rows) & set(known) - {r.name for r in results if r.not_applicable})
    # A line a case, so that a change of the file can be read.
    path.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in kept) + "\n}\n")


def row(result: Result) -> dict[str, Any]:
    """What is kept of a result; errors have two digits, ``[rms, maximum]``."""
    components = {
        c["path"]: {side: [float(f"{c[side][m]:.1e}") for m in _MEASURES] for side in ("torch", "ours")}
        for c in result.components
    }
    return {
        "passed": result.passed, "levels": result.levels, "fallbacks": result.fallbacks, "components": components,
        "seconds": round(result.seconds, 1),
    }  # fmt: skip


def known_failures(results: list[Result], rows: dict[str, dict[str, Any]]) -> set[str]:
    """The cases that fail now as they do in the baseline."""
    return {r.name for r in results if not r.passed and not r.not_applicable and r.name in rows and not rows[r.name]["passed"]}


def regressions(results: list[Result], rows: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Case -> what is worse than in the baseline; cases that the baseline lacks are not in it."""
    found = {r.name: _worse(r, rows[r.name]) for r in results if r.name in rows and not r.not_applicable}
    return {name: sentences for name, sentences in found.items() if sentences}


def vanished(rows: dict[str, dict[str, Any]], known: Iterable[str]) -> list[str]:
    """The cases of the baseline that exist no more."""
    return sorted(set(rows) - set(known))


def _worse(result: Result, before: dict[str, Any]) -> list[str]:
    said = []
    if before["passed"] and not result.passed:
        said.append("passed in the baseline and fails now")
    for path in sorted(set(result.fallbacks) - set(before["fallbacks"])):
        said.append(f"{path} did not run in torch in the baseline: {result.fallbacks[path]}")
    if not result.components and before["components"]:
        said.append(f"nothing is compared any more: {'; '.join(result.failures) or 'no component ran'}")
    elif result.levels is None and before["levels"] is not None:
        said.append("the images are not compared any more")
    now = {c["path"]: c["ours"] for c in result.components}
    for path, errors in before["components"].items():
        if path not in now:
            if result.components and path not in result.fallbacks:
                said.append(f"{path} is not compared any more")
            continue
        for measure, old in zip(_MEASURES, errors["ours"]):
            new = now[path][measure]
            if new > max(WORSE * old, NOTICED):
                said.append(f"{path}: its error ({measure}) is {new:.1e}; in the baseline it was {old:.1e}")
    return said
