"""The command line of the suite; README.md says what its exit codes mean."""

import argparse
import contextlib
import fnmatch
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console

from diffusers_oneflow import judged
from diffusers_oneflow.errors import EngineUnavailable

from . import baseline, cases, coverage, place, report, results, runner  # noqa: F401
from .registry import CASES, LEVELS, Case
from .shards import shard

PASSED, FAILED, UNUSABLE = 0, 1, 3  # 2 is argparse's: the command line is wrong


def main(arguments: Sequence[str] | None = None, isolated: bool = False) -> int:
    """Run the cases and write the reports; the exit code.

    Args:
        isolated: run them in a process of their own, so that one that crashes fails alone.
    """
    p = _parser()
    options = p.parse_args(arguments)
    if options.jobs < 1:
        p.error(f"--jobs takes a number from 1 on, not {options.jobs}")
    console = Console()
    chosen = _chosen(options, p)
    if options.list:
        _list(chosen, options, console)
        return PASSED
    there = place.Place(options.device, options.dtype, options.replay)
    given = options.baseline or (there.baseline if options.backend == "oneflow" else None)
    rows = baseline.read(given) if given is not None else {}
    committed = baseline.read(baseline.PATH) if options.backend == "oneflow" else {}
    # Times of the CPU split the cases of a device that has none of its own, too; whatever the processor, parts stay the same.
    usual = there.is_usual and options.baseline is None
    chosen = _share(options, p, chosen, committed if usual else {**committed, **rows})
    if usual:
        rows = {**committed, **rows}
    try:
        with contextlib.ExitStack() as stack:
            if options.results:
                stack.enter_context(judged.judging(options.backend))
                ran, where = _read(options.results, there)
            else:
                there.check(options.backend)
                stack.enter_context(place.running(there, options.backend))
                _try_backend()
                ran, where = _run(chosen, console, isolated, options.jobs, rows), report.environment()
    except EngineUnavailable as error:
        console.print(f"the backend {options.backend} cannot run here: {error}", markup=False, highlight=False)
        return UNUSABLE
    except ValueError as error:
        p.error(str(error))
    missing = sorted({case.name for case in chosen} - {result.name for result in ran})
    vanished = baseline.vanished(rows, CASES)
    run = report.Run(options.backend, ran, rows, vanished, missing, coverage.not_covered(), where)
    _write(run, options)
    run.print(console)
    if options.update_baseline:
        if given is None:
            p.error("--update-baseline of another backend than oneflow needs --baseline FILE")
        baseline.update(given, ran, CASES)
        console.print(f"{given} has these results now", highlight=False)
        return FAILED if run.missing else PASSED
    wrong = run.failed or run.regressions or run.vanished or run.missing or (options.strict and run.known)
    return FAILED if wrong else PASSED


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m conformance", description="Numerical parity of a backend with PyTorch.")
    p.add_argument("--list", action="store_true", help="name the cases, and the pipelines without one, and end")
    p.add_argument("--level", choices=LEVELS, action="append", help="these cases; may be given several times; default: all")
    p.add_argument("--only", action="append", metavar="NAME", help="this case, or those that match 'Flux*'; several times")
    p.add_argument("--full", action="store_true", help="the models of full size as well")
    p.add_argument("--shard", metavar="I/N", help="the I-th of N parts that take about the same time")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="so many processes, which share the cores of this machine")
    p.add_argument("--backend", default="oneflow", metavar="NAME", help="what to judge; of the entry points diffusers.backends")
    p.add_argument("--device", default="cpu", metavar="DEVICE", help="where models run, as torch names it: cpu, cuda, cuda:1")
    p.add_argument("--dtype", choices=place.DTYPES, default="float32", help="the dtype of models there; default: float32")
    p.add_argument("--replay", action="store_true", help="run graphs as on other devices than the CPU, with torch's own ops")
    p.add_argument("--from", dest="results", action="append", type=Path, metavar="FILE",
                   help="run nothing: take the results that --json wrote; several times")  # fmt: skip
    for kind in report.WRITERS:
        p.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write a report as {kind}")
    p.add_argument("--baseline", type=Path, metavar="FILE", help="compare with this one (default for oneflow: the committed)")
    p.add_argument("--update-baseline", action="store_true", help="write what came out into the baseline, and exit with 0")
    p.add_argument("--strict", action="store_true", help="fail also for what fails in the baseline")
    return p


def _chosen(options: argparse.Namespace, p: argparse.ArgumentParser) -> list[Case]:
    """The cases that the command line names, ops first."""
    every = sorted(CASES.values(), key=lambda case: LEVELS.index(case.level))
    levels = options.level or LEVELS
    if not options.only:
        return [case for case in every if case.level in levels and (options.full or not case.full or options.list)]
    unknown = [name for name in options.only if not fnmatch.filter(CASES, name)]
    if unknown:
        p.error(f"unknown case {', '.join(sorted(unknown))}; --list names them")
    return [case for case in every if case.level in levels and any(fnmatch.fnmatchcase(case.name, n) for n in options.only)]


def _share(
    options: argparse.Namespace, p: argparse.ArgumentParser, chosen: list[Case], rows: dict[str, dict[str, Any]]
) -> list[Case]:
    """The part of them that --shard names."""
    if not options.shard:
        return chosen
    index, _, count = options.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        p.error(f"--shard takes I/N, as in 1/4, not {options.shard}")
    try:
        return shard(chosen, int(index), int(count), {name: row["seconds"] for name, row in rows.items()})
    except ValueError as error:
        p.error(str(error))


def _run(
    chosen: list[Case], console: Console, isolated: bool, jobs: int, rows: dict[str, dict[str, Any]]
) -> list[results.Result]:
    if jobs < 2:
        return runner.run_all(chosen, console, isolated)

    def say(result: results.Result) -> None:
        verdict = "passed" if result.passed else "; ".join(result.failures) or f"does not apply: {result.not_applicable}"
        console.print(f"{result.name}: {verdict}", markup=False, highlight=False, soft_wrap=True)

    # The longest first, so that none is left over at the end.
    order = sorted(chosen, key=lambda case: -rows.get(case.name, {}).get("seconds", 0.0))
    ran = {result.name: result for result in runner.run_in_workers(order, jobs, say)}
    return [ran[case.name] for case in chosen if case.name in ran]


def _list(chosen: list[Case], options: argparse.Namespace, console: Console) -> None:
    for case in chosen:
        said = f"{case.name:46} {case.about}{' (--full)' if case.full else ''}"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    if not options.only and "pipelines" in (options.level or LEVELS):
        for name, reason in coverage.not_covered().items():
            said = reason if reason == coverage.NO_REASON else f"{coverage.NO_REASON}: {reason}"
            console.print(f"{name:46} {said}", highlight=False, markup=False, soft_wrap=True)


def _read(paths: list[Path], there: place.Place) -> tuple[list[results.Result], dict[str, Any]]:
    """The results that --json wrote at a place, and what is said of the machine.

    Raises:
        ValueError: a file holds none, or those of another place.
    """
    parts = [results.read(path) for path in paths]
    for path, (_, about) in zip(paths, parts):
        name = about.get("environment", {}).get("place", place.Place().name)
        if name != there.name:
            raise ValueError(f"{path} has the results of {name}, not of {there.name}: give --device and --dtype as they were")
    return [result for part, _ in parts for result in part], parts[0][1].get("environment", {})


def _try_backend() -> None:
    """See that the backend takes a pipeline at all, before every case fails for it."""
    import torch

    pipe = judged.Alone(torch.nn.Identity())
    try:
        judged.attach(pipe)
    except Exception as error:
        raise EngineUnavailable(str(error)) from error
    judged.detach(pipe)


def _write(run: report.Run, options: argparse.Namespace) -> None:
    for kind, write in report.WRITERS.items():
        if path := getattr(options, kind):
            write(run, path)


if __name__ == "__main__":
    sys.exit(main(isolated=True))
