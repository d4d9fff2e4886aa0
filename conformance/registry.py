"""The table of cases."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers_oneflow.parity import Report


@dataclass(frozen=True)
class Case:
    """One case: `run` makes its models, seeded, without a download, and compares them.

    Attributes:
        full: takes minutes and gigabytes; runs with --full only.
    """

    name: str
    about: str
    run: Callable[[], Report]
    full: bool = False


CASES: dict[str, Case] = {}


def case(name: str, full: bool = False):
    """Register a function () -> Report; its docstring says what it is about."""

    def register(function: Callable[[], Report]) -> Callable[[], Report]:
        if name in CASES:
            raise ValueError(f"two cases are called {name!r}")
        CASES[name] = Case(name, function.__doc__.strip().splitlines()[0], function, full)
        return function

    return register
