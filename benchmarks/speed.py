"""Times one UNet step, the text encoder, the VAE decoder and the whole pipeline: OneFlow against torch.

Every peer lives in a process of its own; one of them works at a time, turn by turn in every round, so that
whatever slows the machine down meets all of them. With ``--together`` all peers share one process: what
remains of the difference is what their thread pools do to each other.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import bars, common
from .children import Child, ChildFailed
from .peers import DEFAULT, DTYPES, ONEFLOW, PEERS, cast, check, environment, prepare_pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

BASELINE = "torch"
WORDS = ("unet", "text", "vae", "pipeline")


@dataclass(frozen=True)
class Job:
    """What is measured.

    Args:
        model: "demo" or "sd15".
        latent: height and width of the latent.
        steps: steps of the whole pipeline.
        pipeline: whether the whole pipeline is measured too.
        repeats: rounds.
        dtype: of models and inputs: one of `peers.DTYPES`.
        only: the cases' first words ("unet", "text", "vae", "pipeline"); none of them: all.
    """

    model: str
    latent: int
    steps: int
    pipeline: bool
    repeats: int
    dtype: str = "float32"
    only: tuple[str, ...] = ()


@dataclass
class PeerResult:
    """What one peer did.

    Attributes:
        seconds: case -> seconds per call, one per round.
        first: case -> seconds of the first call, which compiles.
        error: case -> largest difference from torch, relative to the largest value of torch's output.
        peak_bytes: largest resident size of its process, compilation included.
        threads: what torch says of its thread pool there.
        failure: why it has no (more) results.
        failures: case -> why it has no results in that case alone.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    threads: int = 0
    failure: str = ""
    failures: dict[str, str] = field(default_factory=dict)


class Subject:
    """The pipeline set up for one peer, in this process."""

    def __init__(self, peer: str, job: Job) -> None:
        import torch

        from . import models

        pipe = models.pipeline(job.model)
        cast(peer, pipe, job.dtype)
        prepare_pipeline(peer, pipe, job.dtype)
        found = models.cases(pipe, job.latent, job.steps)
        self.cases = {name: call for name, call in found.items() if _wanted(name, job)}
        self.threads = torch.get_num_threads()

    def first(self, case: str) -> tuple[float, NDArray[Any]]:
        """``(seconds, result)`` of the first call; three more, and what they leave to do in the background, warm up."""
        start = time.perf_counter()
        result = self.cases[case]()
        seconds = time.perf_counter() - start
        common.warm_up(self.cases[case])
        return seconds, result.float().numpy()

    def turn(self, case: str) -> float:
        """Seconds per call of one turn."""
        return common.timed_turn(self.cases[case])


def _serve(channel: Connection, peer: str, job: Job) -> int:
    """The child's side: answers ("first" | "turn", case) until told to stop, then gives its peak memory."""
    with environment(peer):
        subject = Subject(peer, job)
        channel.send(("ready", (list(subject.cases), subject.threads)))
        while (request := channel.recv()) is not None:
            action, case = request
            try:
                channel.send(("done", getattr(subject, action)(case)))
            except Exception as error:
                channel.send(("failed", f"{type(error).__name__}: {error}"))
        return common.peak_bytes()


def _wanted(case: str, job: Job) -> bool:
    if job.only:
        return case.startswith(job.only)
    return job.pipeline or not case.startswith("pipeline")


class CaseFailed(RuntimeError):
    """A peer cannot do a case; it may do others."""


class _Remote:
    """A subject in a child process."""

    def __init__(self, peer: str, job: Job) -> None:
        self._child = Child(_serve, peer, job)
        self.cases, self.threads = self._child.receive()[1]

    def first(self, case: str) -> tuple[float, NDArray[Any]]:
        found: tuple[float, NDArray[Any]] = self._ask("first", case)
        return found

    def turn(self, case: str) -> float:
        seconds: float = self._ask("turn", case)
        return seconds

    def _ask(self, *request: str) -> Any:
        self._child.send(request)
        kind, value = self._child.receive()
        if kind == "failed":
            raise CaseFailed(value)
        return value

    def close(self) -> int:
        self._child.send(None)
        peak: int = self._child.receive()[1]
        self._child.__exit__()
        return peak


class _Local(Subject):
    """A subject in this process, beside the other peers."""

    def close(self) -> int:
        return common.peak_bytes()


def measure(job: Job, peers: list[str], together: bool = False) -> dict[str, PeerResult]:
    """Run `job` on all `peers`.

    A peer that fails in a case is left out of the rest of that case, one whose process has died of all that
    follows; its result says why.
    """
    results = {peer: PeerResult() for peer in peers}
    subjects: dict[str, _Remote | _Local] = {}
    for peer in peers:
        with _failing(results[peer]):
            print(f"starting {peer}: {PEERS[peer]}", flush=True)
            subjects[peer] = (_Local if together else _Remote)(peer, job)
            results[peer].threads = subjects[peer].threads
    cases = list(next(iter(subjects.values())).cases) if subjects else []
    for case in cases:
        outputs = {}
        for peer in _running(subjects, results):
            with _failing(results[peer], case):
                results[peer].first[case], outputs[peer] = subjects[peer].first(case)
                print(f"{case}: first call of {peer} took {results[peer].first[case]:.2f} s", flush=True)
        for peer in outputs if BASELINE in outputs else ():
            results[peer].error[case] = _error(outputs[peer], outputs[BASELINE])
        turns = {peer: _turn(subjects[peer], results[peer], case) for peer in outputs}
        for peer, seconds in common.interleave(turns, job.repeats).items() if turns else ():
            if not results[peer].failure and case not in results[peer].failures:
                results[peer].seconds[case] = seconds
    for peer in _running(subjects, results):
        with _failing(results[peer]):
            results[peer].peak_bytes = subjects[peer].close()
    return results


def _running(subjects: dict[str, _Remote | _Local], results: dict[str, PeerResult]) -> list[str]:
    return [peer for peer in subjects if not results[peer].failure]


def _turn(subject: _Remote | _Local, result: PeerResult, case: str) -> Callable[[], float]:
    def turn() -> float:
        if result.failure or case in result.failures:
            return math.nan
        with _failing(result, case):
            return subject.turn(case)
        return math.nan

    return turn


class _failing:
    """Keeps a peer's failure as its result: in `case` alone, if there is one and the peer's process still lives."""

    def __init__(self, result: PeerResult, case: str | None = None) -> None:
        self._result, self._case = result, case

    def __enter__(self) -> _failing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        if self._case is None or isinstance(error, ChildFailed):
            self._result.failure = str(error)
        else:
            self._result.failures[self._case] = str(error)
        print(error, file=sys.stderr, flush=True)
        return True


def _error(output: NDArray[Any], reference: NDArray[Any]) -> float:
    return float(abs(output - reference).max() / max(abs(reference).max(), 1e-30))


def as_json(job: Job, results: dict[str, PeerResult]) -> dict[str, Any]:
    """Everything measured, with medians and ratios to torch eager (contiguous)."""
    peers = {}
    base = results.get(BASELINE, PeerResult()).seconds
    for peer, result in results.items():
        shown = {}
        for case, seconds in result.seconds.items():
            summary = common.summarize(seconds)
            shown[case] = {
                "seconds": summary,
                "ratio_to_torch": common.ratio(seconds, base[case]) if case in base else None,
                "first_call_seconds": result.first[case],
                "compile_seconds": max(0.0, result.first[case] - summary.median),
                "error_against_torch": result.error.get(case),
                "rounds": seconds,
            }
        peers[peer] = {
            "cases": shown,
            "peak_bytes": result.peak_bytes,
            "torch_threads": result.threads,
            "failure": result.failure.strip() or None,
            "case_failures": result.failures,
        }
    job_json = {"model": job.model, "dtype": job.dtype, "latent": job.latent, "steps": job.steps, "repeats": job.repeats}
    job_json["only"] = job.only
    return {**job_json, "peers": peers}


def show(report: dict[str, Any]) -> None:
    """Print a table per case."""
    cases = {case: None for peer in report["peers"].values() for case in peer["cases"]}
    for case in cases:
        rows = []
        for name, peer in report["peers"].items():
            if case in peer["cases"]:
                rows.append((name, *_cells(peer["cases"][case]), f"{peer['peak_bytes'] / 2**20:.0f}"))
            else:
                rows.append((name, "failed", "", "", "", ""))
        columns = ("peer", "ms: median (quartiles)", "x torch: median (quartiles)", "compile s", "error", "peak MB")
        title = f"{report['model']}, {report['dtype']}, latent {report['latent']}x{report['latent']}: {case}"
        common.table(title, columns, rows, f"{report['repeats']} rounds; compile s = first call less the median")
    for name, peer in report["peers"].items():
        if peer["failure"]:
            print(f"{name} failed: {peer['failure'].splitlines()[-1]}")
        for case, failure in peer["case_failures"].items():
            print(f"{name} failed in {case}: {(failure.strip() or 'no message').splitlines()[0]}")


def _cells(case: dict[str, Any]) -> tuple[str, ...]:
    error = case["error_against_torch"]
    return (
        case["seconds"].show(1000, 1),
        case["ratio_to_torch"].show() if case["ratio_to_torch"] else "",
        f"{case['compile_seconds']:.1f}",
        "" if error is None else f"{error:.0e}",
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a peer failed or a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("demo", "sd15"), default="demo")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of models and inputs")
    parser.add_argument("--latent", type=int, help="latent size (default: 16 for demo, 32 for sd15)")
    parser.add_argument("--steps", type=int, default=10, help="steps of the whole pipeline")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--peers", default=",".join(DEFAULT), help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument("--only", default="", help=f"cases by their first words, comma-separated, of {', '.join(WORDS)}")
    parser.add_argument("--pipeline", action="store_true", help="sd15: time the whole pipeline too (demo always does)")
    parser.add_argument("--together", action="store_true", help="all peers in one process")
    parser.add_argument("--judge", choices=tuple(ONEFLOW), default="oneflow", help="the peer that must keep to the bars")
    parser.add_argument("--out", help="folder or .json file for the results; a plot is written beside it")
    options = parser.parse_args(argv)
    peers = options.peers.split(",")
    try:
        for peer in peers:
            check(peer, options.dtype)
    except ValueError as error:
        parser.error(str(error))
    latent = options.latent or {"demo": 16, "sd15": 32}[options.model]
    pipeline = options.pipeline or options.model == "demo"
    only = tuple(filter(None, options.only.split(",")))
    if unknown := [word for word in only if word not in WORDS]:
        parser.error(f"unknown cases {', '.join(unknown)}; there are {', '.join(WORDS)}")
    job = Job(options.model, latent, options.steps, pipeline, options.repeats, options.dtype, only)
    machine = common.machine()
    report = as_json(job, measure(job, peers, options.together))
    show(report)
    bars.show(report)
    judged = bars.judge(report, options.judge)
    report = {"machine": machine, "together": options.together, **report, "bars": judged}
    name = f"speed-{job.model}-{job.latent}" + ("" if job.dtype == "float32" else f"-{job.dtype}")
    name += "-together" if options.together else ""
    path = common.write(name, report, options.out)
    if path is not None:
        from .plots import speed

        speed(report, path.with_suffix(".png"))
    failed = any(peer["failure"] or peer["case_failures"] for peer in report["peers"].values())
    return int(failed or not all(bar["passed"] for bar in judged))


if __name__ == "__main__":
    sys.exit(main())
