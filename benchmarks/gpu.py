"""A UNet's step on an NVIDIA GPU beside torch, each peer on a model of its own, interleaved in one process by CUDA events.

python -m benchmarks.gpu --latent 64 --dtype float16 --peers oneflow torch torch-graph reduce-overhead max-autotune
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch

from . import common, models

PEERS = {
    "oneflow": "OneFlow's plan as one CUDA graph, by this package",
    "torch": "torch eager, channels_last",
    "torch-graph": "the same, captured as a CUDA graph",
    "reduce-overhead": "torch.compile(mode='reduce-overhead'), channels_last",
    "max-autotune": "torch.compile(mode='max-autotune'), channels_last",
}
_COMPILED = ("reduce-overhead", "max-autotune")
# At most these times the milliseconds of the fastest torch.compile, and seconds to capture and build.
BAR, BUILD_BAR = 0.85, 15.0


def build(peer: str, unet: torch.nn.Module, inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """What runs one step as `peer` does, after its first call; `unet` is on the GPU, in its dtype."""
    if peer == "oneflow":
        import diffusers_oneflow

        diffusers_oneflow.compile(unet, diffusers_oneflow.OneFlowConfig(fallback="error", progress=False, cache=None, cuda=True))
    else:
        unet.to(memory_format=torch.channels_last)
    call = torch.compile(unet, mode=peer) if peer in _COMPILED else unet

    def step() -> torch.Tensor:
        if peer in _COMPILED:
            torch.compiler.cudagraph_mark_step_begin()
        return call(*inputs, return_dict=False)[0]

    if peer != "torch-graph":
        step()
        return step
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()

    def replay(held=(unet, inputs)) -> torch.Tensor:  # the graph reads them where they are
        graph.replay()
        return made

    return replay


def milliseconds(step: Callable[[], object], times: int) -> float:
    """Of one call, on the GPU's own clock."""
    step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times


@torch.no_grad()
def measure(model: str, latent: int, dtype: torch.dtype, peers: list[str], rounds: int, times: int = 10) -> dict:
    """Per peer milliseconds a step by round, seconds to the first result, bytes at the peak, and the error against torch."""
    steps, report = {}, {}
    for peer in peers:
        unet = models.unet(model).to("cuda", dtype)
        args, kwargs = models.unet_inputs(unet, latent)
        inputs = [t.cuda() for t in (*args, kwargs["encoder_hidden_states"])]
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        steps[peer] = build(peer, unet, inputs)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        built = torch.cuda.max_memory_allocated() - held
        torch.cuda.reset_peak_memory_stats()
        made = steps[peer]().float()
        peak = torch.cuda.max_memory_allocated() - held
        report[peer] = {"seconds": seconds, "built_bytes": built, "peak_bytes": peak, "made": made}
    base = report.get("torch", next(iter(report.values())))["made"]
    turns = {peer: (lambda step=step: milliseconds(step, times)) for peer, step in steps.items()}
    for peer, values in common.interleave(turns, rounds).items():
        made = report[peer].pop("made")
        report[peer] |= {"ms": values, "difference": ((made - base).norm() / base.norm()).item()}
    return report


def show(title: str, report: dict):
    """Print the table, and whether the bars are kept."""
    rows = []
    for peer, found in report.items():
        rows.append((
            peer, common.summarize(found["ms"]).show(), f"{found['seconds']:.1f}", f"{found['peak_bytes'] / 1e6:.0f}",
            f"{found['difference']:.0e}",
        ))  # fmt: skip
    columns = ("peer", "ms: median (quartiles)", "first result s", "peak MB", "from torch")
    common.table(title, columns, rows, "MB: of one call, beside the weights")
    compiled = [p for p in report if p in _COMPILED]
    if "oneflow" in report and compiled:
        medians = {p: common.summarize(report[p]["ms"]).median for p in report}
        best = min(compiled, key=medians.__getitem__)
        common.verdict(f"oneflow / {best}", medians["oneflow"] / medians[best], BAR)
    if "oneflow" in report:
        common.verdict("capture and build", report["oneflow"]["seconds"], BUILD_BAR, " s")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sd15", choices=("sd15", "tiny"))
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--peers", nargs="+", default=list(PEERS)[:4], choices=list(PEERS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that torch can use here", file=sys.stderr)
        return 2
    report = measure(options.model, options.latent, getattr(torch, options.dtype), options.peers, options.repeats)
    gpu = torch.cuda.get_device_name()
    show(f"{options.model}, {options.dtype}, latent {options.latent}, batch {models.BATCH}, {gpu}: unet step", report)
    common.write(f"gpu-{options.model}-{options.latent}", {"gpu": gpu, "options": vars(options), "peers": report}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
