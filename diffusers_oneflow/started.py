"""When this process was started; noted when the package is imported, since a fork has to know when its parent read its code."""

from __future__ import annotations

import os


def _now() -> float:
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", encoding="ascii") as file:
        boot = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    return boot + ticks / os.sysconf("SC_CLK_TCK")


try:
    # In seconds since 1970.
    STARTED = _now()
except Exception:  # importing must not fail; then no file counts as old enough
    STARTED = 0.0
