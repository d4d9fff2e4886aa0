"""What all benchmarks share: interleaved timing, statistics, the machine's description, tables and JSON."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "oneflow", "openvino", "diffusers", "transformers", "diffusers_oneflow", "numpy")


@dataclass(frozen=True)
class Summary:
    """A sample's median and quartiles."""

    median: float
    low: float
    high: float
    count: int

    def show(self, scale: float = 1.0, digits: int = 2) -> str:
        """``median (low-high)``, each times `scale`."""
        middle, low, high = (f"{v * scale:.{digits}f}" for v in (self.median, self.low, self.high))
        return f"{middle} ({low}-{high})"


def summarize(values: Sequence[float]) -> Summary:
    """Median and quartiles (linear between neighbours) of at least one value."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values to summarize")
    return Summary(statistics.median(ordered), _quantile(ordered, 0.25), _quantile(ordered, 0.75), len(ordered))


def _quantile(ordered: list[float], part: float) -> float:
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Summary of value / baseline, taken round by round: what slows a whole round down cancels out."""
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} rounds against {len(baseline)}")
    return summarize([v / b for v, b in zip(values, baseline, strict=True)])


@dataclass(frozen=True)
class Growth:
    """How a sampled quantity went over a run.

    Attributes:
        first: median of the samples early in the run, after warming up.
        last: median of its last fifth.
        slope: least-squares change from the first kept sample to the last.
        flat: neither `last - first` nor `slope` is above the limit.
    """

    first: float
    last: float
    slope: float
    flat: bool


def growth(samples: Sequence[float], limit: float = 0.02) -> Growth:
    """Judge whether `samples`, taken at even intervals, stay flat within `limit` of their early level.

    The first fifth is warm-up and left out. Falling counts as flat.
    """
    kept = list(samples[len(samples) // 5 :])
    if len(kept) < 4:
        raise ValueError(f"{len(samples)} samples are too few to judge growth")
    part = max(1, len(kept) // 4)
    first, last = statistics.median(kept[:part]), statistics.median(kept[-part:])
    slope = statistics.linear_regression(range(len(kept)), kept).slope * (len(kept) - 1)
    return Growth(first, last, slope, max(last - first, slope) <= limit * first)


def interleave(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every turn once per round and collect what it returns.

    The order rotates, so that no peer always comes after the same other one.
    """
    names = list(turns)
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            results[name].append(turns[name]())
    return results


def timed_turn(call: Callable[[], object], least: float = 0.2) -> float:
    """Seconds per call, over as many calls as fill `least` seconds; a short call runs once untimed before.

    Whoever ran before has left its data in the caches: only calls that are short enough for that to matter
    are warmed up.
    """
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    if once >= least:
        return once
    count = max(1, round(least / max(once, 1e-6)))
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def warm_up(call: Callable[[], object]) -> None:
    """Call three times more after a first call, and wait for what that leaves to do in the background."""
    for _ in range(3):
        call()
    _until_idle()


def _until_idle(most: float = 60.0) -> None:
    """Wait, at most so many seconds, while threads of this process work on: some peers go on compiling or moving weights."""
    end = time.monotonic() + most
    while time.monotonic() < end:
        start = time.process_time()
        time.sleep(0.2)
        if time.process_time() - start < 0.1:
            return


def machine() -> dict[str, Any]:
    """Cores, processor, memory, versions and the load before the run (with a caution); no names of hosts or users."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0]
    if load > 0.5:
        # Torch's threads spin while they wait for each other: beside other work it can be a hundred times slower.
        print(f"caution: the load is {load:.1f} already; timings need an idle machine")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "memory_gib": round(memory / 2**30, 1),
        "load_before": round(load, 2),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_bytes() -> int:
    """The largest resident size that this process has had (VmHWM)."""
    return _status("VmHWM")


def resident_bytes() -> int:
    """The resident size of this process now (VmRSS)."""
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print a table; all columns but the first are aligned to the right."""
    shown = Table(title=title, caption=note or None)
    for position, column in enumerate(columns):
        shown.add_column(column, justify="right" if position else "left")
    for row in rows:
        shown.add_row(*row)
    # A table piped into a file is not squeezed into 80 columns.
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(shown)


def write(name: str, results: dict[str, Any], out: str | None, say: bool = True) -> Path | None:
    """Write `results` as JSON into the file or folder `out`, and say so; None writes nothing."""
    if out is None:
        return None
    path = Path(out) if out.endswith(".json") else Path(out) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, **results}, indent=2, default=_plain) + "\n")
    if say:
        print(f"wrote {path}")
    return path


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, (Summary, Growth)):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def verdict(name: str, value: float, bar: float, unit: str = "") -> bool:
    """Print whether `value` is within `bar`, and return it."""
    good = value <= bar
    print(f"{'PASS' if good else 'FAIL'} {name}: {value:.3f}{unit} (bar: at most {bar:g}{unit})")
    return good
