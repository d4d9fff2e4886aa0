"""The table of cases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from diffusers_oneflow.parity import Report

# From single ops to whole pipelines, in the order in which they run.
LEVELS = ("ops", "models", "pipelines")
Comparison = Callable[[], Report]


@dataclass(frozen=True)
class Case:
    """One case: `run` makes its models, seeded, without a download, and compares them.

    Attributes:
        full: takes minutes and gigabytes; runs with --full only.
        level: one of `LEVELS`.
        pipeline: the class that it is about, if it is one entry of the table of pipelines.
    """

    name: str
    about: str
    run: Comparison
    full: bool = False
    level: str = "pipelines"
    pipeline: str = ""


CASES: dict[str, Case] = {}


def add(case: Case) -> None:
    """Put a case into the table.

    Raises:
        ValueError: there is one of that name.
    """
    if case.name in CASES:
        raise ValueError(f"two cases are called {case.name!r}")
    CASES[case.name] = case


def case(name: str, full: bool = False, level: str = "pipelines") -> Callable[[Comparison], Comparison]:
    """Register a function () -> Report; its docstring says what it is about."""

    def register(function: Comparison) -> Comparison:
        about = cast(str, function.__doc__)
        add(Case(name, about.strip().splitlines()[0], function, full, level))
        return function

    return register
