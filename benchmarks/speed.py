"""Times one UNet step, the text encoder, the VAE decoder and the whole pipeline: OneFlow against torch.

Every peer lives in a process of its own; one of them works at a time, turn by turn in every round, so that
whatever slows the machine down meets all of them. With ``--together`` all peers share one process: what
remains of the difference is what their thread pools do to each other.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass, field

from . import common
from .children import Child, ChildFailed
from .peers import DEFAULT, PEERS, environment, prepare_pipeline

BASELINE = "torch"


@dataclass(frozen=True)
class Job:
    """What is measured.

    Args:
        model: "demo" or "sd15".
        latent: height and width of the latent.
        steps: steps of the whole pipeline.
        pipeline: whether the whole pipeline is measured too.
        repeats: rounds.
    """

    model: str
    latent: int
    steps: int
    pipeline: bool
    repeats: int


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
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    threads: int = 0
    failure: str = ""


class Subject:
    """The pipeline set up for one peer, in this process."""

    def __init__(self, peer: str, job: Job):
        import torch

        from . import models

        pipe = models.pipeline(job.model)
        prepare_pipeline(peer, pipe)
        found = models.cases(pipe, job.latent, job.steps)
        self.cases = {name: call for name, call in found.items() if job.pipeline or not name.startswith("pipeline")}
        self.threads = torch.get_num_threads()

    def first(self, case: str):
        """``(seconds, result)`` of the first call; one more call warms up."""
        start = time.perf_counter()
        result = self.cases[case]()
        seconds = time.perf_counter() - start
        self.cases[case]()
        return seconds, result.numpy()

    def turn(self, case: str) -> float:
        """Seconds per call of one turn."""
        return common.timed_turn(self.cases[case])


def _serve(channel, peer: str, job: Job):
    """The child's side: answers ("first" | "turn", case) until told to stop, then gives its peak memory."""
    with environment(peer):
        subject = Subject(peer, job)
        channel.send(("ready", (list(subject.cases), subject.threads)))
        while (request := channel.recv()) is not None:
            action, case = request
            channel.send(("done", getattr(subject, action)(case)))
        return common.peak_bytes()


class _Remote:
    """A subject in a child process."""

    def __init__(self, peer: str, job: Job):
        self._child = Child(_serve, peer, job)
        self.cases, self.threads = self._child.receive()[1]

    def first(self, case: str):
        self._child.send(("first", case))
        return self._child.receive()[1]

    def turn(self, case: str) -> float:
        self._child.send(("turn", case))
        return self._child.receive()[1]

    def close(self) -> int:
        self._child.send(None)
        peak = self._child.receive()[1]
        self._child.__exit__()
        return peak


class _Local(Subject):
    """A subject in this process, beside the other peers."""

    def close(self) -> int:
        return common.peak_bytes()


def measure(job: Job, peers: list[str], together: bool = False) -> dict[str, PeerResult]:
    """Run `job` on all `peers`; one that fails is left out from there on, and its result says why."""
    results = {peer: PeerResult() for peer in peers}
    subjects = {}
    for peer in peers:
        with _failing(results[peer]):
            print(f"starting {peer}: {PEERS[peer]}", flush=True)
            subjects[peer] = (_Local if together else _Remote)(peer, job)
            results[peer].threads = subjects[peer].threads
    cases = list(next(iter(subjects.values())).cases) if subjects else []
    for case in cases:
        outputs = {}
        for peer in _running(subjects, results):
            with _failing(results[peer]):
                results[peer].first[case], outputs[peer] = subjects[peer].first(case)
                print(f"{case}: first call of {peer} took {results[peer].first[case]:.2f} s", flush=True)
        for peer in outputs if BASELINE in outputs else ():
            results[peer].error[case] = _error(outputs[peer], outputs[BASELINE])
        turns = {peer: _turn(subjects[peer], results[peer], case) for peer in _running(subjects, results)}
        for peer, seconds in common.interleave(turns, job.repeats).items() if turns else ():
            if not results[peer].failure:
                results[peer].seconds[case] = seconds
    for peer in _running(subjects, results):
        with _failing(results[peer]):
            results[peer].peak_bytes = subjects[peer].close()
    return results


def _running(subjects: dict, results: dict[str, PeerResult]) -> list[str]:
    return [peer for peer in subjects if not results[peer].failure]


def _turn(subject, result: PeerResult, case: str):
    def turn() -> float:
        if result.failure:
            return math.nan
        with _failing(result):
            return subject.turn(case)
        return math.nan

    return turn


class _failing:
    """Keeps a peer's failure as its result."""

    def __init__(self, result: PeerResult):
        self._result = result

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if error is None or not isinstance(error, (ChildFailed, RuntimeError)):
            return False
        self._result.failure = str(error)
        print(self._result.failure, file=sys.stderr, flush=True)
        return True


def _error(output, reference) -> float:
    return float(abs(output - reference).max() / max(abs(reference).max(), 1e-30))


def as_json(job: Job, results: dict[str, PeerResult]) -> dict:
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
        }
    return {"model": job.model, "latent": job.latent, "steps": job.steps, "repeats": job.repeats, "peers": peers}


def show(report: dict):
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
        title = f"{report['model']}, latent {report['latent']}x{report['latent']}: {case}"
        common.table(title, columns, rows, f"{report['repeats']} rounds; compile s = first call less the median")
    for name, peer in report["peers"].items():
        if peer["failure"]:
            print(f"{name} failed: {peer['failure'].splitlines()[-1]}")


def _cells(case: dict) -> tuple[str, ...]:
    error = case["error_against_torch"]
    return (
        case["seconds"].show(1000, 1),
        case["ratio_to_torch"].show() if case["ratio_to_torch"] else "",
        f"{case['compile_seconds']:.1f}",
        "" if error is None else f"{error:.0e}",
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a peer failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("demo", "sd15"), default="demo")
    parser.add_argument("--latent", type=int, help="latent size (default: 16 for demo, 32 for sd15)")
    parser.add_argument("--steps", type=int, default=10, help="steps of the whole pipeline")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--peers", default=",".join(DEFAULT), help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument("--pipeline", action="store_true", help="sd15: time the whole pipeline too (demo always does)")
    parser.add_argument("--together", action="store_true", help="all peers in one process")
    parser.add_argument("--out", help="folder or .json file for the results; a plot is written beside it")
    options = parser.parse_args(argv)
    peers = options.peers.split(",")
    if unknown := [p for p in peers if p not in PEERS]:
        parser.error(f"unknown peers {', '.join(unknown)}; there are {', '.join(PEERS)}")
    latent = options.latent or {"demo": 16, "sd15": 32}[options.model]
    job = Job(options.model, latent, options.steps, options.pipeline or options.model == "demo", options.repeats)
    machine = common.machine()
    report = as_json(job, measure(job, peers, options.together))
    show(report)
    report = {"machine": machine, "together": options.together, **report}
    name = f"speed-{job.model}-{job.latent}" + ("-together" if options.together else "")
    path = common.write(name, report, options.out)
    if path is not None:
        from .plots import speed

        speed(report, path.with_suffix(".png"))
    return int(any(peer["failure"] for peer in report["peers"].values()))


if __name__ == "__main__":
    sys.exit(main())
