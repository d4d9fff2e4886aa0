"""A run as a whole: what passed, what is new about it, and its reports as JSON, JUnit, HTML and Markdown."""

import collections
import math
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import diffusers
import torch
from rich.console import Console

from diffusers_oneflow.kernels import loader

from . import baseline, coverage, place, results
from .registry import CASES, LEVELS
from .results import Result


def environment() -> dict[str, str]:
    """What a reader needs to know of this machine."""
    here = place.here()
    where = {} if here.is_usual else {"place": here.name, "device": _device_name(here.device), "dtype": here.dtype}
    return {
        **where, "python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__,
        "machine": platform.machine(), "instructions": loader.instruction_set() or "plain",
        "threads": str(torch.get_num_threads()),
    }  # fmt: skip


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


@dataclass
class Run:
    """The results of one run beside the baseline.

    Attributes:
        results: of the cases that were judged; what did not apply there is in `not_applicable`, with the reason.
        rows: the baseline.
        vanished: cases of the baseline that exist no more.
        missing: cases that were to run, of which the given results say nothing.
        not_covered: pipelines of the installed diffusers without a case, with the reason.
        environment: where the cases ran.
    """

    backend: str
    results: list[Result]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    vanished: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    not_covered: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all_results = self.results
        self.results = [r for r in self.all_results if not r.not_applicable]
        self.not_applicable = {r.name: r.not_applicable for r in self.all_results if r.not_applicable}
        self.known = baseline.known_failures(self.results, self.rows)
        self.regressions = baseline.regressions(self.results, self.rows)

    @property
    def title(self) -> str:
        """The backend's name as people write it."""
        return {"oneflow": "OneFlow"}.get(self.backend, self.backend)

    @property
    def failed(self) -> list[str]:
        """The cases that fail and do not in the baseline."""
        return [r.name for r in self.results if not r.passed and r.name not in self.known]

    @property
    def better(self) -> list[str]:
        """The cases that pass and do not in the baseline."""
        return [r.name for r in self.results if r.passed and r.name in self.rows and not self.rows[r.name]["passed"]]

    def verdict(self, result: Result) -> str:
        """``passed``, ``failed``, ``known failure`` (as in the baseline) or ``worse`` (than there)."""
        if result.name in self.regressions:
            return "worse" if result.passed or result.name in self.known else "failed"
        return "passed" if result.passed else "known failure" if result.name in self.known else "failed"

    def of(self, level: str) -> list[Result]:
        """The results of one level."""
        return [r for r in self.results if r.level == level]

    @property
    def counts(self) -> dict[str, str]:
        """What stands above a report, in order."""
        said = {level: f"{sum(r.passed for r in rows)} of {len(rows)} passed" for level in LEVELS if (rows := self.of(level))}
        if pipelines := self.of("pipelines"):
            on = sum(r.main_on_backend and bool(r.components) for r in pipelines)
            said["main models"] = f"on {self.title} in {on} of {len(pipelines)} pipelines ({on / len(pipelines):.0%})"
        if len(shares := self._shares()) > 1:
            *_, high = statistics.quantiles(shares, n=10, method="inclusive")
            middle = f"{statistics.median(shares):.2f} of torch's own in the median of {len(shares)} comparisons"
            said["RMS errors of models"] = f"{middle}, {high:.2f} at the 90th percentile, {max(shares):.2f} at most"
        if self.not_applicable:
            said["not applicable"] = f"{len(self.not_applicable)} cases"
        if self.missing:
            said["not run"] = f"{len(self.missing)} cases"
        said["not covered"] = f"{len(self.not_covered)} pipeline classes of diffusers {diffusers.__version__}"
        return said

    def _shares(self) -> list[float]:
        """Of the models that were compared, alone and in pipelines, each one's RMS error over torch's own, where it has one."""
        rows = [c for r in self.results if r.level != "ops" for c in r.components]
        return [c["ours"]["rms"] / c["torch"]["rms"] for c in rows if 0 < c["torch"]["rms"] < math.inf]

    def print(self, console: Console) -> None:
        """Say how it went."""
        console.rule()
        passed = sum(r.passed for r in self.results)
        said = [f"{passed} of {len(self.results)} cases passed", *(f"{k}: {v}" for k, v in self.counts.items())]
        for name, names in (("failed", self.failed), ("known to fail", sorted(self.known)), ("vanished", self.vanished),
                            ("not run", self.missing),
                            ("passed, but not in the baseline", self.better)):  # fmt: skip
            said += [f"{name}: {', '.join(names)}"] if names else []
        said += [f"{name}, worse than the baseline: {s}" for name, worse in self.regressions.items() for s in worse]
        said += [f"{name} does not apply here: {reason}" for name, reason in self.not_applicable.items()]
        for line in said:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def write_json(run: Run, path: Path) -> None:
    """All numbers and pictures; ``--from`` reads them back."""
    about = {
        "backend": run.backend, "environment": run.environment, "failed": run.failed, "known": sorted(run.known),
        "regressions": run.regressions, "vanished": run.vanished, "missing": run.missing, "not_covered": run.not_covered,
    }  # fmt: skip
    results.write(path, run.all_results, about)


def write_junit(run: Run, path: Path) -> None:
    """One test a case; what is known to fail, and what is not covered, counts as skipped."""
    suite = ElementTree.Element("testsuite", name=f"conformance of {run.title}")
    tally: collections.Counter[str] = collections.Counter()

    def test(name: str, level: str, seconds: float, kind: str = "", message: str = "") -> None:
        tally[kind] += 1
        made = ElementTree.SubElement(suite, "testcase", name=name, classname=f"conformance.{level}", time=f"{seconds:.2f}")
        if kind:
            ElementTree.SubElement(made, kind, message=message.splitlines()[0][:300]).text = message

    for r in run.results:
        verdict = run.verdict(r)
        message = "\n".join([*run.regressions.get(r.name, ()), *r.failures])
        kind = {"passed": "", "known failure": "skipped"}.get(verdict, "failure")
        test(r.name, r.level, r.seconds, kind, f"{verdict}: {message}")
    for name, reason in run.not_applicable.items():
        test(name, CASES[name].level, 0.0, "skipped", reason)
    for name in run.missing:
        test(name, CASES[name].level, 0.0, "failure", "none of the given results has it")
    for name in run.vanished:
        test(name, "baseline", 0.0, "failure", "the case is in the baseline and exists no more")
    for name, reason in run.not_covered.items():
        test(name, "not_covered", 0.0, "skipped", reason)
    suite.set("tests", str(sum(tally.values())))
    suite.set("failures", str(tally["failure"]))
    suite.set("skipped", str(tally["skipped"]))
    suite.set("time", f"{sum(r.seconds for r in run.results):.2f}")
    ElementTree.indent(suite)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _render(template: str, run: Run) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, autoescape=template.endswith(".html.j2"), trim_blocks=True, lstrip_blocks=True)
    made.undefined = jinja2.StrictUndefined
    made.filters["error"] = lambda value: f"{value:.1e}" if value else "0"
    rules = {"worse": baseline.WORSE, "noticed": baseline.NOTICED}
    return made.get_template(template).render(run=run, levels=LEVELS, rules=rules, no_reason=coverage.NO_REASON)


def write_html(run: Run, path: Path) -> None:
    """A page that needs no other file."""
    path.write_text(_render("report.html.j2", run))


def write_markdown(run: Run, path: Path) -> None:
    """One line a case, without pictures."""
    path.write_text(_render("report.md.j2", run))


WRITERS = {"json": write_json, "junit": write_junit, "html": write_html, "markdown": write_markdown}
