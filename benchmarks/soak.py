"""Runs OneFlow for long on a machine whose cores are all busy: no crash, no wrong result, resident memory flat.

Every part runs in a child process, beside as many busy loops as there are cores.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import common
from .children import Child, ChildFailed
from .soak_parts import PARTS, Plan

FULL = {
    "calls-sleep": Plan(20_000, sleep=0.002),
    "calls": Plan(20_000),
    "images": Plan(200),
    "threads": Plan(300),
}
QUICK = {
    "calls-sleep": Plan(300, sleep=0.002),
    "calls": Plan(300),
    "images": Plan(3, steps=1, seeds=1, size=64),
    "threads": Plan(1, steps=1, seeds=1, size=64),
}
# Ends with its parent: no busy loop is left behind when the soak is killed.
_BUSY = "import os\np = os.getppid()\nwhile os.getppid() == p:\n    for _ in range(1000000): pass"
_TELL_EVERY = 20.0


@contextlib.contextmanager
def busy(cores: int) -> Iterator[None]:
    """Keep `cores` cores busy with processes that do nothing of use."""
    loops = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(cores)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run_part(name: str, plan: Plan) -> dict[str, Any]:
    """Run one part in a child and say how it went: counts, memory, and `crash` (None, a signal or an exception)."""
    progress, told = (0, 0), time.monotonic()
    with Child(PARTS[name], plan) as child:
        try:
            while True:
                kind, value = child.receive()
                if kind == "result":
                    break
                progress = value
                if time.monotonic() - told > _TELL_EVERY:
                    told = time.monotonic()
                    print(f"{name}: {progress[0]} done, {progress[1]} wrong", flush=True)
        except ChildFailed as failure:
            value = {"done": progress[0], "wrong": progress[1], "seconds": None, "resident_bytes": []}
            return {**value, "first_wrong": "", "crash": failure.signal or str(failure), "memory": None}
    enough = len(value["resident_bytes"]) >= 10
    return {**value, "crash": None, "memory": common.growth(value["resident_bytes"]) if enough else None}


def faults(outcome: dict[str, Any]) -> list[str]:
    """What is wrong with a part's outcome; empty if it passed."""
    found = []
    if outcome["crash"]:
        found.append(f"crash after {outcome['done']}: {outcome['crash'].strip().splitlines()[-1]}")
    if outcome["wrong"]:
        found.append(f"{outcome['wrong']} wrong results, the first: {outcome['first_wrong'] or 'before the crash'}")
    if not outcome["crash"] and not outcome["done"]:
        found.append("nothing was done")
    memory = outcome["memory"]
    if memory is not None and not memory.flat:
        found.append(f"resident memory grew from {memory.first / 2**20:.1f} to {memory.last / 2**20:.1f} MB")
    return found


def _row(name: str, outcome: dict[str, Any]) -> tuple[str, ...]:
    memory, seconds = outcome["memory"], outcome["seconds"]
    resident = f"{memory.first / 2**20:.1f} -> {memory.last / 2**20:.1f}" if memory else "(too few samples)"
    verdict = "; ".join(faults(outcome)) or "pass"
    return name, str(outcome["done"]), str(outcome["wrong"]), f"{seconds:.0f}" if seconds else "", resident, verdict


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if any part has a crash, a wrong result or growing memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds of each part, beside one busy loop")
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--import-first", action="store_true", help="import oneflow before diffusers_oneflow")
    parser.add_argument("--idle", action="store_true", help="no busy loops beside it")
    parser.add_argument("--fault", choices=("wrong", "crash"), help="plant a fault, to see that it is found")
    parser.add_argument("--out", help="folder or .json file for the results")
    options = parser.parse_args(argv)
    names = options.only.split(",")
    if unknown := [n for n in names if n not in PARTS]:
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(PARTS)}")
    machine, outcomes = common.machine(), {}
    cores = len(os.sched_getaffinity(0))
    with busy(0 if options.idle else 1 if options.quick else cores):
        for name in names:
            plan = replace((QUICK if options.quick else FULL)[name], import_first=options.import_first, fault=options.fault)
            amount = f"{plan.count} {'seconds' if name == 'threads' else 'results'}"
            print(f"{name}: {amount}", flush=True)
            outcomes[name] = run_part(name, plan)
    columns = ("part", "done", "wrong", "seconds", "resident MB", "verdict")
    common.table("soak", columns, [_row(name, outcome) for name, outcome in outcomes.items()])
    report = {"machine": machine, "import_first": options.import_first, "quick": options.quick, "busy": not options.idle}
    common.write("soak-import-first" if options.import_first else "soak", {**report, "parts": outcomes}, options.out)
    return int(any(faults(outcome) for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
