"""Seconds that capture, passes, lowering and compiling take, for the full-size UNet and for the demo model.

Each repetition is a process of its own; the seconds are those that `diffusers_oneflow.explain` reports. ``--cached`` measures
two processes instead, of which the second finds on disk what the first has captured.
"""

import argparse
import sys
import tempfile
import time

from . import children, common

BAR = 20.0
# What the second process takes to start, of the first one's time.
CACHED_BAR = 1 / 3
STAGES = ("capture", "passes", "lowering", "compiling")


def compile_once(model: str, latent: int) -> dict[str, dict[str, float]]:
    """Component -> seconds by stage, and of the whole first call, in this fresh process.

    "sd15" compiles the UNet alone; "demo" all components, by drawing an image of one step.
    """
    import torch

    import diffusers_oneflow

    from . import models

    config = diffusers_oneflow.OneFlowConfig(fallback="error", progress=False)
    seconds = {}
    with torch.no_grad():
        if model == "sd15":
            pipe = models.sd15_unet()
            args, kwargs = models.unet_inputs(pipe, latent)
            diffusers_oneflow.compile(pipe, config)
            start = time.perf_counter()
            pipe(*args, **kwargs)
        else:
            pipe = models.demo_pipeline().to(backend="oneflow", backend_config=config)
            start = time.perf_counter()
            models.image(pipe, 1, size=latent * pipe.vae_scale_factor)
        first = time.perf_counter() - start
    for path, component in diffusers_oneflow.explain(pipe, show=False).items():
        if component.graphs:
            stages = {stage: sum(g.seconds[stage] for g in component.graphs) for stage in STAGES}
            seconds["unet" if model == "sd15" else path] = {**stages, "total": sum(stages.values())}
    seconds["first call"] = {"total": first}
    return seconds


def start_once(model: str, latent: int, folder: str) -> dict[str, float]:
    """What it takes to start in this fresh process with a cache in `folder`: the first call less the second one.

    ``wall`` and ``cpu`` (of all threads) in seconds, and ``imports``, the seconds that importing took, which are no part of them.
    """
    begun = time.perf_counter()
    import torch

    import diffusers_oneflow

    from . import models

    imports = time.perf_counter() - begun
    unet = models.unet(model)
    diffusers_oneflow.compile(unet, diffusers_oneflow.OneFlowConfig(fallback="error", progress=False, cache=folder))
    args, kwargs = models.unet_inputs(unet, latent)
    calls = []
    with torch.no_grad():
        for _ in range(2):
            wall, cpu = time.perf_counter(), time.process_time()
            unet(*args, **kwargs)
            calls.append((time.perf_counter() - wall, time.process_time() - cpu))
    (graph,) = next(iter(diffusers_oneflow.explain(unet, show=False).values())).graphs
    wall, cpu = (first - second for first, second in zip(*calls))
    return {"wall": wall, "cpu": cpu, "imports": imports, **graph.seconds, "from_disk": graph.origin == "disk cache"}


def cached(options: argparse.Namespace, latent: int) -> int:
    """Measure pairs of processes, each pair with a cache of its own; the exit code."""
    pairs = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append([children.call(start_once, options.model, latent, folder) for _ in range(2)])
            print(*pairs[-1], sep="\n", flush=True)
    good = all(second["from_disk"] and not first["from_disk"] for first, second in pairs)
    for clock in ("wall", "cpu"):
        ratio = common.ratio([second[clock] for _, second in pairs], [first[clock] for first, _ in pairs])
        name = f"{options.model}, start of the second process / the first, {clock} seconds"
        good &= common.verdict(name, ratio.median, CACHED_BAR)
    report = {"machine": common.machine(), "model": options.model, "latent": latent, "pairs": pairs}
    common.write(f"cached-{options.model}-{latent}", report, options.out)
    return int(not good)


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, common.Summary]]:
    """Component -> stage -> summary over the repetitions."""
    return {
        component: {stage: common.summarize([run[component][stage] for run in runs]) for stage in stages}
        for component, stages in runs[0].items()
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if the full-size UNet misses the bar or a process failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_time", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("demo", "sd15"), default="sd15")
    parser.add_argument("--latent", type=int, help="latent size (default: 16 for demo, 32 for sd15)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", help="folder or .json file for the results")
    parser.add_argument("--cached", action="store_true", help="measure the cache on disk instead")
    options = parser.parse_args(argv)
    latent = options.latent or {"demo": 16, "sd15": 32}[options.model]
    if options.cached:
        return cached(options, latent)
    machine = common.machine()
    try:
        found = summary([children.call(compile_once, options.model, latent) for _ in range(options.repeats)])
    except children.ChildFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    rows = [
        (component, *(stages[stage].show() if stage in stages else "" for stage in (*STAGES, "total")))
        for component, stages in found.items()
    ]
    title = f"{options.model}, latent {latent}x{latent}: seconds, median (quartiles) of {options.repeats}"
    common.table(title, ("component", *STAGES, "total"), rows, "first call = all of it, and the first run")
    report = {"machine": machine, "model": options.model, "latent": latent, "repeats": options.repeats, "seconds": found}
    common.write(f"compile-{options.model}-{latent}", report, options.out)
    if options.model == "sd15":
        return int(not common.verdict("full-size UNet, capture to compiling", found["unet"]["total"].median, BAR, " s"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
