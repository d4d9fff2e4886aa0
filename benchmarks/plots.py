"""Draws results as PNG files."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

_OURS, _OTHERS = "#2a6fbb", "#b8bec6"


def speed(report: dict[str, Any], path: Path) -> None:
    """One panel per case: a bar per peer with its median, quartiles as whiskers, and the ratio to torch."""
    cases = list({case: None for peer in report["peers"].values() for case in peer["cases"]})
    if not cases:
        return
    peers = list(report["peers"])
    height = 0.6 + 0.38 * len(peers)
    figure, panels = pyplot.subplots(len(cases), 1, figsize=(8, height * len(cases) + 0.6), squeeze=False)
    for panel, case in zip(panels[:, 0], cases, strict=True):
        _bars(panel, case, {peer: report["peers"][peer]["cases"].get(case) for peer in peers})
    machine = report["machine"]
    title = f"{report['model']}, {report['dtype']}, latent {report['latent']}x{report['latent']}, {machine['cores']} cores"
    figure.suptitle(f"{title}: median of {report['repeats']} rounds", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"wrote {path}")


def _bars(panel: Axes, case: str, measured: dict[str, dict[str, Any] | None]) -> None:
    for place, (peer, result) in enumerate(measured.items()):
        if result is None:
            panel.text(0, place, " failed", va="center", fontsize=8)
            continue
        seconds, against = result["seconds"], result["ratio_to_torch"]
        spread = [[1000 * (seconds.median - seconds.low)], [1000 * (seconds.high - seconds.median)]]
        panel.barh(
            place, 1000 * seconds.median, xerr=spread, color=_OURS if peer.startswith("oneflow") else _OTHERS, height=0.7,
            error_kw={"lw": 1, "capsize": 2},
        )  # fmt: skip
        label = f"  {1000 * seconds.median:.1f} ms" + (f", {against.median:.2f}x torch" if against else "")
        panel.text(1000 * seconds.high, place, label, va="center", fontsize=8)
    panel.set_yticks(range(len(measured)), list(measured), fontsize=8)
    panel.invert_yaxis()
    panel.set_title(case, fontsize=9, loc="left")
    panel.set_xlabel("ms per call", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.margins(x=0.28)
    panel.set_xlim(left=0)
    panel.spines[["top", "right"]].set_visible(False)


def peers(title: str, panels: dict[str, dict[str, dict[str, Any] | None]], path: Path) -> None:
    """A panel per name in `panels`, in which each peer has a bar: its `seconds` and `ratio_to_torch`, or None where it failed."""
    height = 0.8 + 0.38 * max(map(len, panels.values()))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, height * len(panels) + 0.5), squeeze=False)
    for panel, (name, measured) in zip(axes[:, 0], panels.items(), strict=True):
        _bars(panel, name, measured)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"wrote {path}")


def profile(title: str, report: dict[str, Any], path: Path, rest: str = "outside of the pack") -> None:
    """A bar per kernel and op with its milliseconds, its share of the call, and how fast it moves and computes.

    Args:
        rest: what the last bar is called, ``rest_ms`` of the report.
    """
    rows = report["kernels"]
    figure, panel = pyplot.subplots(figsize=(9, 1.2 + 0.3 * (len(rows) + 1)))
    labels = [f"{row['kernel']} ({row['op']}) x{row['count']}" for row in rows]
    values = [row["ms"] for row in rows]
    panel.barh(range(len(rows) + 1), [*values, max(0.0, report["rest_ms"])], color=[*[_OURS] * len(rows), _OTHERS], height=0.7)
    for place, row in enumerate(rows):
        rates = [f"{row[key]:.0f} {unit}" for key, unit in _RATES.items() if row.get(key)]
        panel.text(row["ms"], place, "  " + ", ".join([f"{row['share']:.1%}", *rates]), va="center", fontsize=8)
    panel.set_yticks(range(len(rows) + 1), [*labels, rest], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("ms per call", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.margins(x=0.3)
    panel.set_xlim(left=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(f"{title}: {report['call_ms'].median:.1f} ms", fontsize=10, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"wrote {path}")


_RATES = {"gb_per_second": "GB/s", "gflop_per_second": "GFLOP/s"}
