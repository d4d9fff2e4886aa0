"""Choosing between kernels by measuring them inside the graph that they are for: with its memory, its caches and its power."""

import contextlib
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

from . import cute_ahead, kept

Way = tuple[Callable[..., Any], str]
# After so many seconds no other graph is measured; what has not been by then is out.
SECONDS = 6.0
# Runs of a graph with one way for each step, of which the best counts; one where it takes so many seconds.
_RUNS, _SLOW = 3, 0.3
# Of the root mean square: bfloat16 rounds to 0.004, and long sums cancel.
_OFF = 0.05
# What no kernel makes of integers.
_NO_RESULT = 111
# Whose warnings are heard while ways are tried: the libraries' compilers have much to say.
_OURS = __name__.split(".")[0]
# So many numbers of a result are compared.
_SAMPLE = 1 << 18


class Ways:
    """A step that can be computed in several ways; `_ways` lists them, with the names of their kernels, the likeliest first.

    Attributes:
        name: of the kernels of the way that is taken.
        able: the ways that work here, by number, while it is open which is taken.
        number: of the way that is taken.
    """

    name = ""
    # Whether the first argument is filled; else the result is returned.
    fills = True

    def __init__(self) -> None:
        self.able: dict[int, Way] = {}
        self.number = 0
        self._way: Way | None = None
        self.key = ""

    def _ways(self, *args: Any) -> list[Way]:
        raise NotImplementedError

    def _compute(self, key: object, args: tuple[Any, ...], device: torch.device, spare: int = 1) -> Any:
        """What the way that is taken makes of `args`.

        Args:
            key: what the answer depends on, beside the GPU and the libraries' versions.
            spare: so many of the last ways are for where none of the others works.

        Raises:
            torch.OutOfMemoryError: none has room.
            RuntimeError: none can compute it.
        """
        if self._way is None:
            try:
                self._find(key, args, device, spare)
            except cute_ahead.Deferred:  # there is another run when it is compiled
                return self._meanwhile(args)
        assert self._way is not None
        run = self._way[0]
        return run(*args) if _open is None else _open.marked(self, run, args)

    def _meanwhile(self, args: tuple[Any, ...]) -> Any:
        """By the first way that works."""
        errors = []
        for way in self._ways(*args):
            made, error = _tried(way, args)
            if error is None:
                return made
            errors.append(error)
        raise _reason(errors)

    def take(self, number: int) -> None:
        """Compute in this way from now on."""
        self.number = number
        self._settle(self.able[number])

    def _settle(self, way: Way) -> None:
        self._way, self.name = way, way[1]

    def _find(self, key: object, args: tuple[Any, ...], device: torch.device, spare: int) -> None:
        ways = self._ways(*args)
        self.key = repr((key, len(ways), *sorted({name for _, name in ways})))
        if device.type != "cuda":  # in Triton's interpreter: what needs no library of the GPU's comes last
            return self._settle(ways[-1])
        number = kept.known(device.index or 0).get(self.key, len(ways))
        if number < len(ways) and _error(ways[number], args) is None:
            return self._settle(ways[number])
        self.able = {n: ways[n] for n in self._working(ways, args, spare)}
        if _open is not None and len(self.able) > 1:
            if self.key not in _open.wrong:
                _open.wrong[self.key] = _wrong(self.key, self.able, ways[-1], args, self.fills)
            wrong = _open.wrong[self.key]
            self.able = {n: way for n, way in self.able.items() if n not in wrong} or {len(ways) - 1: ways[-1]}
        self.take(min(self.able))
        if _open is not None and len(self.able) > 1:
            _open.pending.append(self)

    def _working(self, ways: list[Way], args: tuple[Any, ...], spare: int) -> list[int]:
        """Numbers of the ways that compute something: those of the first step of this kind, if one does so here too."""
        known = [] if _open is None else _open.able.get(self.key, [])
        if known and _error(ways[known[0]], args) is None:
            return known
        errors: dict[int, Exception | None] = {}
        for n, way in enumerate(ways[: len(ways) - spare]):
            errors[n] = error = _error(way, args)
            if isinstance(error, cute_ahead.Deferred):
                raise error
        if all(error is not None for error in errors.values()):
            errors |= {n: _error(way, args) for n, way in enumerate(ways) if n not in errors}
        able = [n for n, error in errors.items() if error is None]
        if not able:
            raise _reason(errors.values())
        if _open is not None and _short(errors.values()) is None:  # else there may be room next time
            _open.able.setdefault(self.key, able)
        return able


def _wrong(key: str, ways: dict[int, Way], judge: Way, args: tuple[Any, ...], fills: bool) -> set[int]:
    """Of ways that do not agree, those that are off from torch's."""
    made = {number: _sample(way, args, fills) for number, way in ways.items()}
    first, *others = made.values()
    if all(_is_near(other, first) for other in others) or _error(judge, args) is not None:
        return set()
    true = _sample(judge, args, fills)
    wrong = {number for number, sample in made.items() if not _is_near(sample, true)}
    if wrong:
        named = ", ".join(f"{n} ({ways[n][1]})" for n in sorted(wrong))
        warnings.warn(f"kernels that compute something else on this GPU are left out: {named} of {key}", stacklevel=2)
    return wrong


def _sample(way: Way, args: tuple[Any, ...], fills: bool) -> torch.Tensor:
    """Numbers all over the result, in all of its columns."""
    if fills:  # what is not written shows
        args[0].fill_(float("nan") if args[0].is_floating_point() else _NO_RESULT)
    made = way[0](*args)
    result: torch.Tensor = args[0] if fills else made
    step = max(1, result.numel() // _SAMPLE)
    while math.gcd(step, result.shape[-1]) > 1:
        step += 1
    return result.reshape(-1)[::step].to(torch.float32, copy=True)


def _is_near(made: torch.Tensor, true: torch.Tensor) -> bool:
    """Whether they differ by rounding only, where there are numbers; elsewhere neither may have any."""
    real = true.isfinite()
    if not torch.equal(made.isfinite(), real):
        return False
    made, true = made[real], true[real]
    return not bool((made - true).norm() > _OFF * true.norm())


def _tried(way: Way, args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """What it makes, or why it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=_OURS)
            return way[0](*args), None
    except Exception as error:  # whatever a library or Triton's compiler raises: another one can
        return None, error


def _error(way: Way, args: tuple[Any, ...]) -> Exception | None:
    return _tried(way, args)[1]


def _short(errors: Iterable[Exception | None]) -> torch.OutOfMemoryError | None:
    return next((error for error in errors if isinstance(error, torch.OutOfMemoryError)), None)


def _reason(errors: Collection[Exception | None]) -> Exception:
    """What to raise where no way works: that memory is short, if it is so for one of them."""
    return _short(errors) or RuntimeError(f"no kernel computes this: {next(iter(errors), 'there is no way')}")


class Measuring:
    """The choices of one graph.

    Attributes:
        pending: what is to be measured.
        able: for each kind of step, the ways that worked for the first one.
        wrong: for each kind of step that was looked at, the ways that compute something else.
    """

    def __init__(self, device: int) -> None:
        self.pending: list[Ways] = []
        self.able: dict[str, list[int]] = {}
        self.wrong: dict[str, set[int]] = {}
        self._device = device
        self._marks: list[tuple[Ways, torch.cuda.Event, torch.cuda.Event]] | None = None

    def marked(self, step: Ways, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Compute a step, between two events where its time is asked for."""
        if self._marks is None or len(step.able) < 2:
            return run(*args)
        start, end = (_event() for _ in range(2))
        start.record()
        try:
            made = run(*args)
        except Exception:  # it works outside of a graph only
            for other in self.pending:
                if other.key == step.key and len(other.able) > 1:
                    other.able.pop(step.number, None)
            raise
        end.record()
        self._marks.append((step, start, end))
        return made

    def settle(self, record: Callable[[], Callable[[], None]]) -> None:
        """Take the fastest way for each step.

        Args:
            record: captures all steps, each as it is taken, in a graph; returns what runs that.
        """
        took: dict[str, dict[int, float]] = defaultdict(dict)
        started, number = time.perf_counter(), 0
        while self.pending and number < max(len(step.able) for step in self.pending):
            if number and time.perf_counter() - started > SECONDS:
                break
            for step in self.pending:
                step.take(list(step.able)[number % len(step.able)])
            left = sum(len(step.able) for step in self.pending)
            try:
                self._measure(record, took)
            except torch.OutOfMemoryError:  # there may be room for what was measured
                if not took:
                    raise
                break
            except Exception:  # of a way, which is out then, or of none: that is the caller's
                if sum(len(step.able) for step in self.pending) == left:
                    raise
                continue  # without the way that failed
            number += 1
        found = kept.known(self._device)
        for step in self.pending:
            times = {n: t for n, t in took[step.key].items() if n in step.able}
            step.take(min(times, key=times.__getitem__) if times else min(step.able))
            if times.keys() == step.able.keys():  # else another process may have more time
                found[step.key] = step.number
            step.able = {}
        self.pending = []
        kept.keep(self._device)

    def _measure(self, record: Callable[[], Callable[[], None]], took: dict[str, dict[int, float]]) -> None:
        """Add what each step takes as it is, in milliseconds, on average of all that are alike."""
        self._marks = []
        try:
            replay = record()
            marks = self._marks
        finally:
            self._marks = None
        for _ in range(_RUNS):
            started = time.perf_counter()
            replay()
            torch.cuda.synchronize(self._device)
            slow = time.perf_counter() - started > _SLOW
            times: dict[tuple[str, int], list[float]] = defaultdict(list)
            for step, start, end in marks:
                times[step.key, step.number].append(start.elapsed_time(end))
            for (key, number), values in times.items():
                mean = sum(values) / len(values)
                took[key][number] = min(mean, took[key].get(number, mean))
            if slow:
                break


def _event() -> torch.cuda.Event:
    """One that is recorded whenever a graph runs."""
    return torch.cuda.Event(enable_timing=True, external=True)


_open: Measuring | None = None


@contextlib.contextmanager
def measuring(device: int) -> Iterator[Measuring]:
    """While steps run for the first time: what has several ways is measured when the result's `settle` is called."""
    global _open
    _open = Measuring(device)
    try:
        yield _open
    finally:
        _open = None
