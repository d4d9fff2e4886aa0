"""What a second call of an attached module costs above the bare run of its graph.

The figure for the bar is taken inside single calls: the time of the whole call less the time that its graph ran.
A graph takes a hundred times as long as what is asked here, so two runs of it differ by more than that; the
difference between whole calls and bare runs, pair by pair, is shown beside it with its standard error.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from . import children, common

BAR = 0.5e-3


def paired(whole: Callable[[], object], bare: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of `whole` less seconds of `bare`, once per round; who goes first alternates."""
    differences = []
    for number in range(rounds):
        order = (whole, bare) if number % 2 else (bare, whole)
        seconds = {call: _seconds(call) for call in order}
        differences.append(seconds[whole] - seconds[bare])
    return differences


def within(
    whole: Callable[[], object], owner: dict[str, Any], name: str, inner: Callable[..., Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of `whole` without those that it spends in `inner`, and the latter, once per round.

    Args:
        owner: the namespace where `whole` finds `inner` under `name`.
    """
    spent: list[float] = []

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        result = inner(*args)
        spent.append(time.perf_counter() - start)
        return result

    before = owner.get(name)
    owner[name] = timed
    try:
        total = [_seconds(whole) for _ in range(rounds)]
    finally:
        if before is None:
            del owner[name]
        else:
            owner[name] = before
    return [t - s for t, s in zip(total, spent, strict=True)], spent


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def standard_error(values: list[float]) -> float:
    """Of the mean of `values`."""
    return statistics.stdev(values) / math.sqrt(len(values))


def measure(latent: int, rounds: int) -> dict[str, Any]:
    """The figures for the demo model's UNet, in this fresh process."""
    import torch

    import diffusers_oneflow
    from diffusers_oneflow.backend import dispatcher_of

    from . import models

    pipe = models.demo_pipeline()
    unet = pipe.unet
    args, kwargs = models.unet_inputs(unet, latent, pipe.tokenizer.model_max_length)
    diffusers_oneflow.compile(unet, diffusers_oneflow.OneFlowConfig(fallback="error", progress=False))
    with torch.no_grad():
        unet(*args, **kwargs)
        dispatcher = dispatcher_of(unet)
        assert dispatcher is not None  # it is attached
        (entry,) = dispatcher.entries
        tensors = [*args, kwargs["encoder_hidden_states"]]
        # The graph run alone: OneFlow tensors made before, nothing copied, nothing allocated.
        results = [result for _, result, _ in entry.graph._outputs.leave()]
        given = entry.graph._inputs.enter(tensors)
        graph, run = entry.graph._graph, entry.graph._graph.run

        def whole() -> None:
            unet(*args, **kwargs)

        def bare() -> None:
            run(given, results)

        for call in (whole, bare, whole, bare):
            call()
        overhead, runs = within(whole, graph.__dict__, "run", run, rounds)
        dispatch, _ = within(whole, entry.__dict__, "graph", entry.graph, rounds)
        differences = paired(whole, bare, rounds)
        same = bool(torch.equal(unet(*args, **kwargs)[0], entry.graph(tensors)[0]))
    return {
        "run_seconds": common.summarize(runs),
        "overhead_seconds": common.summarize(overhead),
        "dispatch_seconds": common.summarize(dispatch),
        "paired_seconds": common.summarize(differences),
        "paired_standard_error": standard_error(differences),
        "graphs_built": dispatcher.record.built,
        "fallbacks": sum(dispatcher.record.fallbacks.values()),
        "same_result": same,
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=200, help="pairs of calls")
    parser.add_argument("--out", help="folder or .json file for the results")
    options = parser.parse_args(argv)
    machine = common.machine()
    try:
        found = children.call(measure, options.latent, options.repeats)
    except children.ChildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    rows = [
        ("the graph's run", found["run_seconds"].show(1000, 3)),
        ("call less the run inside it", found["overhead_seconds"].show(1000, 3)),
        ("of that, before and after CompiledGraph", found["dispatch_seconds"].show(1000, 3)),
        ("call less a bare run beside it", found["paired_seconds"].show(1000, 3)),
        ("standard error of the line above", f"{1000 * found['paired_standard_error']:.3f}"),
    ]
    common.table("demo UNet: ms, median (quartiles)", ("", "ms"), rows)
    common.write("overhead", {"machine": machine, "latent": options.latent, "bar": BAR, **found}, options.out)
    print(f"graphs built: {found['graphs_built']}, fallbacks: {found['fallbacks']}, results equal: {found['same_result']}")
    cheap = common.verdict("second call above the run of its graph", 1000 * found["overhead_seconds"].median, 1000 * BAR, " ms")
    return int(not (cheap and found["graphs_built"] == 1 and not found["fallbacks"] and found["same_result"]))


if __name__ == "__main__":
    sys.exit(main())
