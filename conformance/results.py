"""What a case gave, as plain values: for JSON, for reports, and from one process to another."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from diffusers_oneflow.parity import Component, Error, Report

from . import pictures
from .registry import Case

# The models that do a pipeline's work: called in every step.
MAIN = ("unet", "transformer", "transformer_2", "prior", "decoder", "prior_prior", "super_res_first", "controlnet")


@dataclass
class Result:
    """One case.

    Attributes:
        failures: what is wrong, a sentence each; empty for a case that passed.
        components: path, errors of torch and `ours` (rms, maximum, peak: `verdict.Error`), the factor and floor, passed.
        levels: largest difference between the final images, of 255.
        fallbacks: component -> why it ran in torch.
        not_applicable: why the case means nothing where it ran; empty for one that was judged.
        seconds: processor time of all threads, so that a process that is stopped meanwhile costs nothing.
        pictures: ``torch``, ``ours`` and ``difference`` as data URIs.
    """

    name: str
    about: str = ""
    level: str = "pipelines"
    pipeline: str = ""
    failures: list[str] = field(default_factory=list)
    components: list[dict[str, Any]] = field(default_factory=list)
    levels: int | None = None
    fallbacks: dict[str, str] = field(default_factory=dict)
    not_applicable: str = ""
    seconds: float = 0.0
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """It was judged, and nothing is wrong."""
        return not self.failures and not self.not_applicable

    @property
    def main_on_backend(self) -> bool:
        """For pipelines: none of the models that do the work ran in torch."""
        return not any(path.split(".")[0] in MAIN for path in self.fallbacks)

    @property
    def worst(self) -> dict[str, Any] | None:
        """The component whose error, in one of its measures, takes the most of what is allowed."""
        return max(self.components, key=_share, default=None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `Result(**...)` without ``passed`` reads it back."""
        return {**asdict(self), "passed": self.passed}


def _share(c: dict[str, Any]) -> float:
    theirs, ours = Error(**c["torch"]), Error(**c["ours"])
    return Component(c["path"], theirs, ours, c["factor"], c["floor"]).excess


def of_report(case: Case, report: Report, seconds: float) -> Result:
    """The result of a case that ran."""
    plain = report.as_dict()
    drawn = pictures.of(*report.drawn) if report.drawn is not None else {}
    return Result(
        case.name, case.about, case.level, case.pipeline, plain["failures"], plain["components"], plain["levels"],
        plain["fallbacks"], "", seconds, drawn,
    )  # fmt: skip


def of_reason(case: Case, reason: str, seconds: float) -> Result:
    """The result of a case that does not apply where it was to run."""
    return Result(case.name, case.about, case.level, case.pipeline, not_applicable=reason, seconds=seconds)


def of_error(case: Case, message: str, seconds: float) -> Result:
    """The result of a case that could not be judged."""
    return Result(case.name, case.about, case.level, case.pipeline, [message], seconds=seconds)


def write(path: Path, results: list[Result], about: dict[str, Any]) -> None:
    """Write a run as JSON: what `about` says of it, and its results by name."""
    path.write_text(json.dumps({**about, "results": {r.name: r.as_dict() for r in results}}, indent=1) + "\n")


def read(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """What `write` wrote.

    Raises:
        ValueError: the file is none of that kind.
    """
    try:
        data = json.loads(path.read_text())
        rows = data.pop("results").values()
        known = {f.name for f in fields(Result)}
        return [Result(**{k: v for k, v in row.items() if k in known}) for row in rows], data
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} holds no results of this suite ({type(error).__name__}: {error})") from None
