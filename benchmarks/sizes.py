"""What new sizes of a known model cost, in seconds and in memory, and whether memory stays within a budget.

One fresh process runs a UNet at many sizes. `first` is the first size; a new size of the same model should take at most half of
its time to start; after all of them, resident memory should be within 5 % of that after five sizes.
"""

import argparse
import gc
import statistics
import sys
import time
from typing import Any

from . import children, common

TIME_BAR, MEMORY_BAR = 0.5, 1.05
_EARLY = 5


def run(model: str, sizes: list[tuple[int, int]], most_bytes: int, batch: int = 1) -> list[dict[str, Any]]:
    """For each size, in this fresh process: ``seconds`` (of the stages of its start), ``cpu`` (processor seconds of the whole
    start), ``origin`` of its program, ``resident`` bytes after it, ``graphs`` alive and ``counted`` bytes of the budget."""
    import torch

    import diffusers_oneflow
    from diffusers_oneflow import budget
    from diffusers_oneflow.backend import dispatcher_of

    from . import models

    unet = models.unet(model)
    config = diffusers_oneflow.OneFlowConfig(
        fallback="error", progress=False, cache=None, max_graphs=len(sizes), max_bytes=most_bytes
    )
    diffusers_oneflow.compile(unet, config)
    found: list[dict[str, Any]] = []
    for height, width in sizes:
        args, kwargs = models.unet_inputs(unet, max(height, width), batch=batch)
        args = (args[0][..., :height, :width].contiguous(), *args[1:])
        with torch.no_grad():
            start = time.process_time()
            unet(*args, **kwargs)
            first = time.process_time() - start
            start = time.process_time()
            unet(*args, **kwargs)
            second = time.process_time() - start
        gc.collect()
        dispatcher = dispatcher_of(unet)
        assert dispatcher is not None  # it is attached
        entry = dispatcher.entries[-1]
        seconds = sum(entry.seconds.values()) + sum(sum(part.graph.seconds.values()) for part in entry.hoisted)
        found.append(
            {
                "size": [height, width],
                "origin": entry.origin,
                "seconds": seconds,
                "cpu": first - second,
                "resident": common.resident_bytes(),
                "graphs": len(dispatcher.entries),
                "counted": budget.used(),
            }
        )
        last = found[-1]
        print(
            f"{height}x{width}: {last['origin']}, {seconds:.2f} s ({last['cpu']:.2f} s of processor), resident "
            f"{last['resident'] / 2**20:.0f} MB, {last['graphs']} graphs, {last['counted'] / 2**20:.0f} MB counted",
            flush=True,
        )
    return found


def sizes_of(count: int, least: int, most: int, step: int) -> list[tuple[int, int]]:
    """`count` different sizes in mixed order, the largest first: the arena has had its full size from there on."""
    sides = range(least, most + 1, step)
    every = sorted(((h, w) for h in sides for w in sides), key=lambda s: (s[0] * 7919 + s[1] * 104729) % 1009)
    largest = max(every, key=lambda s: s[0] * s[1])
    return [largest, *(s for s in every if s != largest)][:count]


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a bar is missed or the process failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("tiny", "demo", "sd15"), default="demo")
    parser.add_argument("--count", type=int, default=50, help="how many sizes (more than 5)")
    parser.add_argument("--least", type=int, default=8, help="smallest side of the latents")
    parser.add_argument("--most", type=int, default=64, help="largest side")
    parser.add_argument("--step", type=int, default=8)
    parser.add_argument("--budget", type=int, default=128, help="MB for compiled graphs (OneFlowConfig.max_bytes)")
    parser.add_argument("--out", help="folder or .json file for the results")
    options = parser.parse_args(argv)
    sizes = sizes_of(options.count, options.least, options.most, options.step)
    machine = common.machine()
    try:
        found = children.call(run, options.model, sizes, options.budget << 20)
    except children.ChildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    others = found[1:]
    ratio = statistics.median(f["cpu"] for f in others) / found[0]["cpu"]
    good = common.verdict(f"{options.model}, a new size / the first, processor seconds, median", ratio, TIME_BAR)
    grown = found[-1]["resident"] / found[min(_EARLY, len(found)) - 1]["resident"]
    good &= common.verdict(f"{options.model}, resident after {len(found)} sizes / after {_EARLY}", grown, MEMORY_BAR)
    report = {"machine": machine, "model": options.model, "budget_bytes": options.budget << 20, "sizes": found}
    common.write(f"sizes-{options.model}", report, options.out)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
