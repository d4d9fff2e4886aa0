"""Does torch keep its own speed beside OneFlow? Both have threads, and the same cores.

One process times a torch module alone, then with OneFlow imported, then in turns with a module that runs on
OneFlow, then with OneFlow idle. Every setting of OpenMP's environment has processes of its own, one at a time: a
waiting policy may keep an idle process's threads busy.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import children, common

if TYPE_CHECKING:
    import torch

BAR = 1.1
SETTINGS = {
    "default": {},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    "OMP_WAIT_POLICY=ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=10000000": {"GOMP_SPINCOUNT": "10000000"},
}
# Phase -> how torch is timed there. All are compared with "alone", the first.
PHASES = {
    "alone": "nothing of OneFlow is there",
    "alone again": "the same: what differs is noise",
    "beside torch": "in turns with another module, on torch",
    "imported": "this package and OneFlow are imported",
    "beside OneFlow": "in turns with that other module, on OneFlow",
    "idle": "its graph stays, and does nothing",
}
JUDGED = ("imported", "beside OneFlow", "idle")
_OMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "MKL_NUM_THREADS")


def measure(environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """``{"ms": load -> phase -> milliseconds, "threads": stage -> count, "torch_threads": [before, after]}``.

    In this fresh process, which has not imported torch.

    Args:
        environment: variables of OpenMP's; all others of it are unset.
        seconds: for each load in each phase.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already: its OpenMP has read the environment")
    for name in _OMP:
        os.environ.pop(name, None)
    os.environ.update(environment)
    import torch

    torch.manual_seed(0)
    loads, other = _loads(), _block()
    image = torch.randn(1, 32, 32, 32)
    found: dict[str, dict[str, Any]] = {"ms": {name: {} for name in loads}, "threads": {"torch imported": threads()}}
    before = torch.get_num_threads()

    def phase(name: str, between: Callable[[], object]) -> None:
        for load, call in loads.items():
            found["ms"][load][name] = 1000 * timed(call, between, seconds)

    with torch.no_grad():
        phase("alone", _nothing)
        phase("alone again", _nothing)
        phase("beside torch", lambda: other(image))
        found["threads"]["torch ran"] = threads()
        import diffusers_oneflow
        from diffusers_oneflow import engine

        engine.load()
        found["threads"]["OneFlow imported"] = threads()
        phase("imported", _nothing)
        expected = other(image)
        diffusers_oneflow.compile(other, diffusers_oneflow.OneFlowConfig(fallback="error", progress=False))
        if not torch.allclose(other(image), expected, atol=1e-4):
            raise RuntimeError("OneFlow's result is wrong")
        phase("beside OneFlow", lambda: other(image))
        phase("idle", _nothing)
        found["threads"]["OneFlow ran"] = threads()
    return {**found, "torch_threads": [before, torch.get_num_threads()]}


def _loads() -> dict[str, Callable[[], object]]:
    """What torch does, some milliseconds each: a stack of convolutions and linear layers, and 300 small ops.

    Long enough that what the call before left in the caches, and waking sleeping threads once, count for little.
    """
    import torch
    from torch import nn

    stack = nn.Sequential(
        nn.Conv2d(32, 96, 3, padding=1), nn.SiLU(), nn.Conv2d(96, 96, 3, padding=1), nn.SiLU(), nn.Conv2d(96, 32, 3, padding=1),
        nn.Flatten(2), nn.Linear(48 * 48, 512), nn.GELU(), nn.Linear(512, 512),
    ).eval()  # fmt: skip
    image, small = torch.randn(1, 32, 48, 48), torch.randn(64, 1024)

    def small_ops() -> torch.Tensor:
        # Large enough that torch shares each among its threads.
        x = small
        for _ in range(100):
            x = torch.softmax(x * 1.5 + small, -1)
        return x

    return {"layers": lambda: stack(image), "small ops": small_ops}


def _block() -> torch.nn.Module:
    """A small module with a residual and an attention-like product, for either side."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU(), nn.Conv2d(64, 32, 3, padding=1), nn.Flatten(2),
        nn.Linear(32 * 32, 256), nn.GELU(),
    ).eval()  # fmt: skip


def _nothing() -> None:
    pass


def timed(call: Callable[[], object], between: Callable[[], object], seconds: float) -> float:
    """Median seconds of `call`, with `between` untimed before each, for `seconds` (at least five calls)."""
    for _ in range(3):
        between()
        call()
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < 5 or time.perf_counter() < end:
        between()
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return common.summarize(spent).median


def threads() -> int:
    """Threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def ratios(runs: list[dict[str, Any]]) -> dict[str, dict[str, common.Summary]]:
    """Load -> phase -> its milliseconds over those of "alone" in the same process."""
    loads = runs[0]["ms"]
    return {
        load: {
            phase: common.ratio([run["ms"][load][phase] for run in runs], [run["ms"][load]["alone"] for run in runs])
            for phase in loads[load]
        }
        for load in loads
    }


def judge(setting: str, found: dict[str, dict[str, common.Summary]]) -> bool:
    """Print PASS or FAIL for each load, by the worst of the phases in which OneFlow is there."""
    good = True
    for load, phases in found.items():
        worst = max(JUDGED, key=lambda phase: phases[phase].median)
        good &= common.verdict(f"{setting}: {load}, torch {worst} / alone", phases[worst].median, BAR)
    return good


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if the bar is missed or a process failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pools", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="processes per setting")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each load in each phase")
    parser.add_argument("--only", default=",".join(SETTINGS), help="comma-separated settings")
    parser.add_argument("--out", help="folder or .json file for the results")
    options = parser.parse_args(argv)
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SETTINGS]:
        parser.error(f"unknown settings {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    machine, good = common.machine(), True
    report: dict[str, dict[str, Any]] = {}
    for name in names:
        print(f"{name}: {options.repeats} processes", flush=True)
        try:
            runs = [children.call(measure, SETTINGS[name], options.seconds) for _ in range(options.repeats)]
        except children.ChildFailed as failure:
            print(f"{name} failed: {failure}", file=sys.stderr)
            good = False
            continue
        report[name] = {"ratios": ratios(runs), "runs": runs}
    show(report)
    for name, result in report.items():
        good &= judge(name, result["ratios"])
    common.write("pools", {"machine": machine, "bar": BAR, "phases": PHASES, "settings": report}, options.out)
    return int(not good)


def show(report: dict[str, Any]) -> None:
    """Print a table per load, and one of the threads."""
    if not report:
        return
    for load in next(iter(report.values()))["ratios"]:
        rows = []
        for name, result in report.items():
            alone = common.summarize([run["ms"][load]["alone"] for run in result["runs"]])
            found = result["ratios"][load]
            rows.append((name, f"{alone.median:.2f}", *(found[phase].show() for phase in PHASES if phase != "alone")))
        columns = ("setting", "alone, ms", *(phase for phase in PHASES if phase != "alone"))
        common.table(f"torch, {load}: milliseconds over those alone, median (quartiles)", columns, rows)
    rows = []
    for name, result in report.items():
        last = result["runs"][-1]
        rows.append((name, *map(str, last["threads"].values()), " -> ".join(map(str, last["torch_threads"]))))
    stages = next(iter(report.values()))["runs"][-1]["threads"]
    common.table("threads of the process", ("setting", *stages, "torch.get_num_threads()"), rows)


if __name__ == "__main__":
    sys.exit(main())
