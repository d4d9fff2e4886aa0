"""Seconds that capture, passes, lowering and compiling take, for the full-size UNet and for the demo model.

Each repetition is a process of its own; the seconds are those that `diffusers_oneflow.explain` reports.
"""

import argparse
import sys
import time

from . import children, common

BAR = 20.0
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
    options = parser.parse_args(argv)
    latent = options.latent or {"demo": 16, "sd15": 32}[options.model]
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
