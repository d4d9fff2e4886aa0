"""Peak resident memory of OneFlow against torch eager; ``--churn`` asks whether dropped graphs give theirs back.

Every figure is the high-water mark (VmHWM) of a process of its own: what it takes to import everything, load
the UNet and run two steps.
"""

import argparse
import gc
import sys

from . import children, common
from .peers import PEERS, environment, prepare

PEAK_BAR = 1.1
CHURN_BAR = 1.05
# Mixed up. The largest comes first: the arena that all graphs share has had its full size from there on.
_CHURN_ORDER = (7, 12, 19, 2, 16, 9, 5, 14, 0, 11, 18, 3, 17, 8, 13, 1, 10, 6, 15, 4)


def peak(peer: str, model: str, latent: int, calls: int = 2) -> dict[str, int]:
    """Resident bytes of this fresh process after each stage, and its peak, in bytes."""
    with environment(peer):
        return _peak(peer, model, latent, calls)


def _peak(peer: str, model: str, latent: int, calls: int) -> dict[str, int]:
    import torch

    from . import models

    stages = {"imports": common.resident_bytes()}
    unet = models.unet(model)
    args, kwargs = models.unet_inputs(unet, latent)
    stages["weights"] = common.resident_bytes()
    prepare(peer, [unet])
    with torch.no_grad():
        for number in range(calls):
            unet(*args, **kwargs)
            stages[f"call {number + 1}"] = common.resident_bytes()
    return {**stages, "peak": common.peak_bytes()}


def peaks(model: str, latents: list[int], peers: list[str]) -> dict[int, dict[str, dict[str, int]]]:
    """Latent -> peer -> what `peak` gives, each in its own process; a peer that failed is missing."""
    found: dict[int, dict[str, dict[str, int]]] = {}
    for latent in latents:
        found[latent] = {}
        for peer in peers:
            print(f"latent {latent}: {peer}", flush=True)
            try:
                found[latent][peer] = children.call(peak, peer, model, latent)
            except children.ChildFailed as failure:
                print(f"{peer} failed: {failure}", file=sys.stderr)
    return found


def churn_sizes(count: int) -> list[int]:
    """`count` different even latent sizes in mixed order.

    The third and the last, after which memory is compared, are the two smallest: what the graph that is alive
    then takes would otherwise hide what dropped ones left behind.
    """
    order = sorted(range(2, count - 1), key=lambda i: _CHURN_ORDER[i % 20] + i // 20 * 20)
    return [4 + 2 * i for i in (count - 1, *order[:1], 0, *order[1:], 1)]


def churn(count: int, way: str = "evict", model: str = "demo") -> list[int]:
    """Resident bytes of this fresh process after each of `count` graphs was built, run and dropped.

    Args:
        way: "evict" keeps the module attached with room for one graph only, so that the next graph drops the
            last one; "detach" attaches and detaches the module for every graph.
    """
    import torch

    import diffusers_oneflow

    from . import models

    unet = models.unet(model)
    config = diffusers_oneflow.OneFlowConfig(fallback="error", progress=False, max_graphs=1)
    resident = []
    diffusers_oneflow.compile(unet, config)
    for size in churn_sizes(count):
        if way == "detach":
            diffusers_oneflow.compile(unet, config)
        args, kwargs = models.unet_inputs(unet, size)
        with torch.no_grad():
            unet(*args, **kwargs)
        if way == "detach":
            diffusers_oneflow.detach(unet)
        gc.collect()
        resident.append(common.resident_bytes())
        print(f"{way}: graph {len(resident)}, latent {size}: {resident[-1] / 2**20:.1f} MB", flush=True)
    return resident


def _report_peaks(model: str, found: dict[int, dict[str, dict[str, int]]]) -> bool:
    rows, good = [], True
    for latent, peers in found.items():
        base = peers.get("torch")
        for peer, stages in peers.items():
            ratio = f"{stages['peak'] / base['peak']:.3f}" if base else ""
            rows.append((f"{peer}, latent {latent}", *(f"{v / 2**20:.0f}" for v in stages.values()), ratio))
    columns = list(next(iter(next(iter(found.values())).values()), {}))
    common.table(f"{model} UNet: resident MB after each stage", ("peer", *columns, "peak / torch"), rows)
    if model != "sd15":
        return all(found.values())  # the bar is for the full size: what the imports alone take decides for a small model
    for latent, peers in found.items():
        if "torch" in peers and "oneflow" in peers:
            value = peers["oneflow"]["peak"] / peers["torch"]["peak"]
            good &= common.verdict(f"peak memory, {model} UNet, latent {latent}, OneFlow / torch", value, PEAK_BAR)
        else:
            good = False
    return good


def _report_churn(way: str, resident: list[int]) -> bool:
    early = resident[2]
    print(f"{way}: after 3 graphs {early / 2**20:.1f} MB, after {len(resident)} {resident[-1] / 2**20:.1f} MB")
    return common.verdict(f"churn ({way}), resident after {len(resident)} / after 3 graphs", resident[-1] / early, CHURN_BAR)


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a bar is missed or a process failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("tiny", "demo", "sd15"), help="default: sd15, and demo for --churn")
    parser.add_argument("--latent", default="32,64", help="comma-separated latent sizes")
    parser.add_argument("--peers", default="torch,oneflow", help=f"comma-separated, of {', '.join(PEERS)}")
    parser.add_argument("--churn", type=int, metavar="N", help="instead: build and drop N (at least 4) graphs of different sizes")
    parser.add_argument("--out", help="folder or .json file for the results")
    options = parser.parse_args(argv)
    model = options.model or ("sd15" if options.churn is None else "demo")
    report = {"machine": common.machine(), "model": model}
    if options.churn is not None:
        if options.churn < 4:
            parser.error("--churn needs at least 4 graphs")
        ways = {}
        for way in ("evict", "detach"):
            try:
                ways[way] = children.call(churn, options.churn, way, model)
            except children.ChildFailed as failure:
                print(f"churn ({way}) failed: {failure}", file=sys.stderr)
        good = all([len(ways) == 2, *(_report_churn(way, resident) for way, resident in ways.items())])
        common.write("memory-churn", {**report, "bar": CHURN_BAR, "resident_bytes": ways}, options.out)
        return int(not good)
    found = peaks(model, [int(v) for v in options.latent.split(",")], options.peers.split(","))
    good = _report_peaks(model, found)
    common.write(f"memory-{model}", {**report, "bar": PEAK_BAR, "bytes": found}, options.out)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
