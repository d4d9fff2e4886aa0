"""OneFlow's seconds over each peer's, and the bars that they must keep to."""

from dataclasses import dataclass
from typing import Any

from . import common
from .peers import ONEFLOW

_EAGER = ("torch", "torch-channels-last")


@dataclass(frozen=True)
class Bar:
    """At most `limit` times the seconds of the fastest of `peers` (by their medians), in one case of one model."""

    model: str
    dtype: str
    case: str
    peers: tuple[str, ...]
    limit: float


BARS = (
    Bar("sd15", "float32", "unet step", _EAGER, 0.65),
    Bar("sd15", "float32", "unet step", ("torch-compile-freezing",), 0.95),
    Bar("sd15", "float32", "unet step", ("openvino",), 1.1),
    Bar("sd15", "bfloat16", "unet step", (*_EAGER, "torch-autocast"), 0.8),
    Bar("sd15", "bfloat16", "unet step", ("openvino",), 1.15),
    Bar("sd15", "float32", "vae decode", _EAGER, 0.85),
    Bar("sd15", "float32", "text encoder", _EAGER, 0.85),
    Bar("demo", "float32", "pipeline", ("torch",), 0.8),
)


def show(report: dict[str, Any]) -> None:
    """Print a table per case of `speed`'s report: a line per peer, a column per form of OneFlow."""
    ours = [peer for peer in ONEFLOW if peer in report["peers"]]
    others = [peer for peer in report["peers"] if peer not in ONEFLOW]
    cases = {case: None for peer in report["peers"].values() for case in peer["cases"]}
    for case in cases if ours else ():
        rows = [(peer, *(_cell(report, case, us, peer) for us in ours)) for peer in others]
        title = f"{report['model']}, {report['dtype']}: {case}, OneFlow / peer"
        if rows:
            common.table(title, ("peer", *ours), rows, "median (quartiles) of the rounds' ratios; below 1 OneFlow is faster")


def judge(report: dict[str, Any], peer: str = "oneflow") -> list[dict[str, Any]]:
    """Print PASS or FAIL for the bars of this report's model and dtype that `peer` must keep to, and return them.

    A bar with a peer or a case that was not asked for is not judged; one with a peer that was asked for and has no result
    is missed.
    """
    judged = []
    for bar in BARS:
        if (bar.model, bar.dtype) != (report["model"], report["dtype"]):
            continue
        name = f"{bar.model} {bar.dtype} {bar.case}, {peer} / {' or '.join(bar.peers)}"
        if missing := [p for p in (peer, *bar.peers) if p not in report["peers"]]:
            print(f"not judged: {name}, without {', '.join(missing)}")
            continue
        if report.get("only") and bar.case.split()[0] not in report["only"]:
            continue
        case = _case(report, bar.case)
        value = None if case is None else _value(report, case, peer, bar.peers)
        if value is None:
            print(f"FAIL {name}: no result")
        passed = value is not None and common.verdict(name, value, bar.limit)
        against = {"case": bar.case, "judged": peer, "peers": bar.peers, "limit": bar.limit}
        judged.append({**against, "ratio": value, "passed": passed})
    return judged


def _case(report: dict[str, Any], start: str) -> str | None:
    names = [case for peer in report["peers"].values() for case in peer["cases"]]
    return next((name for name in names if name.startswith(start)), None)


def _value(report: dict[str, Any], case: str, peer: str, against: tuple[str, ...]) -> float | None:
    """Median ratio of `peer` to the fastest of `against`, or None where one of them has no result."""
    found = {p: report["peers"][p]["cases"].get(case) for p in (peer, *against)}
    if not all(found.values()):
        return None
    best = min(against, key=lambda p: found[p]["seconds"].median)
    return common.ratio(found[peer]["rounds"], found[best]["rounds"]).median


def _cell(report: dict[str, Any], case: str, us: str, peer: str) -> str:
    ours, theirs = (report["peers"][p]["cases"].get(case) for p in (us, peer))
    return common.ratio(ours["rounds"], theirs["rounds"]).show() if ours and theirs else ""
