"""Runs cases, each shielded from the others: one that raises fails, and so does one that ends its process."""

import contextlib
import contextvars
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, cast

from rich.console import Console

from diffusers_oneflow import judged

from . import place
from .place import NotApplicable
from .registry import CASES, Case
from .results import Result, of_error, of_reason, of_report

# A worker that has grown beyond this, in bytes, is replaced: OneFlow keeps a little of every graph.
_LARGE = 3 << 30


def run(case: Case, console: Console) -> Result:
    """Run a case in this process, print its numbers and free its memory."""
    console.rule(case.name)
    start = time.process_time()
    try:
        report = case.run()
        report.print(console)
        for sentence in report.failures:
            console.print(sentence, markup=False, highlight=False)
        result = of_report(case, report, time.process_time() - start)
        del report
    except NotApplicable as reason:
        console.print(f"{case.name} does not apply here: {reason}", markup=False, highlight=False)
        result = of_reason(case, str(reason), time.process_time() - start)
    except Exception as error:  # one broken case must not hide the others
        message = f"{type(error).__name__}: {error}"
        console.print(f"{case.name}: {message}", markup=False, highlight=False)
        result = of_error(case, message, time.process_time() - start)
    gc.collect()
    return result


def run_all(
    cases: Iterable[Case], console: Console, isolated: bool, done: Callable[[Result], None] = lambda r: None
) -> list[Result]:
    """The results of `cases`, in order.

    Args:
        isolated: in a process of their own, which is started anew where a case ends it.
        done: is told each result at once.
    """
    if isolated:
        return run_in_workers(list(cases), 1, done)
    results = []
    for case in cases:
        results.append(run(case, console))
        done(results[-1])
    return results


def run_in_workers(cases: Sequence[Case], jobs: int, done: Callable[[Result], None] = lambda r: None) -> list[Result]:
    """The results of `cases`, which so many processes take one after the other; in their order, interrupted those that are there.

    Args:
        jobs: with several each has cores of its own, or they would wait for each other's threads, and is silent.
        done: is told each result at once, from several threads.
    """
    left, found, workers = deque(cases), dict[str, Result](), set[Worker]()
    cores, killed = sorted(os.sched_getaffinity(0)), threading.Event()

    def serve(number: int) -> None:
        worker: Worker | None = None
        while True:
            try:
                case = left.popleft()
            except IndexError:  # none is left
                break
            try:
                worker = worker or (Worker() if jobs == 1 else Worker(quiet=True, cores=cores[number::jobs] or cores))
                workers.add(worker)
                result = worker.run(case)
            except Exception as error:  # no more processes for this user, say: what the others found must not be lost
                result = of_error(case, f"{type(error).__name__}: {error}", 0.0)
            if killed.is_set():
                break
            found[case.name] = result
            done(result)
            if worker is not None and not worker.fit:
                worker.stop()
                worker = None
        if worker is not None:
            worker.stop()

    with ThreadPoolExecutor(jobs) as pool:
        threads: list[Future[None]] = []
        try:
            for number in range(jobs):
                # Threads do not know where cases run.
                threads.append(pool.submit(contextvars.copy_context().run, serve, number))
            _wait(threads)
        except KeyboardInterrupt:
            left.clear()
            print("interrupted: waiting for the cases that run; once more kills them", file=sys.stderr, flush=True)
            try:
                _wait(threads)
            except KeyboardInterrupt:
                killed.set()
                for worker in list(workers):
                    worker.kill()
    return [found[case.name] for case in cases if case.name in found]


def _wait(threads: Iterable[Future[None]]) -> None:
    for thread in threads:
        thread.result()


class Worker:
    """A process that runs one case after the other; what it prints goes to this one's stdout.

    Args:
        quiet: it goes nowhere.
        cores: that it has to itself.
    """

    def __init__(self, quiet: bool = False, cores: Iterable[int] = ()) -> None:
        mine, theirs = os.pipe()
        command = [sys.executable, "-m", f"{__package__}.runner", str(theirs), judged.name(), *place.here().arguments()]
        # In a session of its own, so that who interrupts the suite does not fail the case that runs.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, pass_fds=[theirs], start_new_session=True,
            stdout=subprocess.DEVNULL if quiet else None,
        )  # fmt: skip
        if cores:
            with contextlib.suppress(OSError):  # it has ended; its first answer says so
                os.sched_setaffinity(self._process.pid, cores)
        os.close(theirs)
        self._names = cast(IO[str], self._process.stdin)  # it is a pipe
        self._answers = os.fdopen(mine)
        self.fit = True

    def run(self, case: Case) -> Result:
        """The result of a case; that it failed, if it ended the process."""
        try:
            self._names.write(case.name + "\n")
            self._names.flush()
        except BrokenPipeError:
            pass  # the empty answer says it
        answer = self._answers.readline()
        if not answer.endswith("\n"):
            self.fit = False
            return of_error(case, f"the process ended with exit code {self._process.wait()}", 0.0)
        read = json.loads(answer)
        self.fit = read.pop("fit")
        return Result(**read)

    def stop(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and a name that it has not read is flushed again
            self._names.close()
        self._process.wait()
        self._answers.close()

    def kill(self) -> None:
        """End the process, whatever it does; who waits for a result sees that it ended."""
        self._process.kill()


def serve(answers: IO[str], backend: str, where: place.Place) -> None:
    """What a worker does: names of cases come in on stdin, results go out as lines of JSON."""
    import psutil

    console = Console()
    with place.running(where, backend):
        for line in sys.stdin:
            result = run(CASES[line.strip()], console)
            row = {k: v for k, v in result.as_dict().items() if k != "passed"}
            fit = psutil.Process().memory_info().rss < _LARGE
            print(json.dumps({**row, "fit": fit}), file=answers, flush=True)


if __name__ == "__main__":
    from . import cases  # noqa: F401
    from .runner import serve as _serve  # this module under its own name, as everything else knows it

    _serve(os.fdopen(int(sys.argv[1]), "w"), sys.argv[2], place.parse(*sys.argv[3:]))
