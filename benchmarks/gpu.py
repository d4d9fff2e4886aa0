"""Models, and whole images, on an NVIDIA GPU beside torch: time, memory, errors and kernels; each case in a process of its own.

python -m benchmarks.gpu --case sd15-unet --peers oneflow torch torch-graph reduce-overhead --out benchmarks/results
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from . import children, common, gpu_bars, gpu_cases, gpu_e2e, gpu_peers, gpu_profile, gpu_steps
from .gpu_device import Cpu, Device, Gpu

CASES = (*gpu_cases.CASES, gpu_e2e.CASE)
# What compilers keep on disk: a run that found it there would tell nothing of the time to the first result.
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")


def run(options: dict[str, Any], device: Device, say: gpu_steps.Say = lambda report: None) -> dict[str, Any]:
    """Measure one case, in this process, which needs a fresh one."""
    # Torch's own search for the fastest convolution, so that its peers are as fast as they can be; ours always searches.
    torch.backends.cudnn.benchmark = True
    device.load()
    measure = gpu_e2e.measure if options["case"] == gpu_e2e.CASE else gpu_steps.measure
    return measure(options, device, say)


def serve(channel: Connection, options: dict[str, Any]) -> dict[str, Any]:
    """The same in a child: what is known so far comes as ("part", report)."""
    device: Device = Cpu() if options["device"] == "cpu" else Gpu()
    return {"gpu": device.describe(), **run(options, device, lambda report: channel.send(("part", report)))}


def measure(options: dict[str, Any], command: str) -> dict[str, Any]:
    """Measure one case in a child and write what is known whenever there is more; "failed" says why it ended early."""
    report: dict[str, Any] = {"case": options["case"], "command": command, "options": options, "machine": common.machine()}
    report["peers"] = {peer: {} for peer in options["peers"]}
    try:
        with _fresh_caches(options["warm"]):
            for last, more in _reports(options):
                report |= more
                common.write(_name(options), report, options["out"], say=last)
            if options["alone"]:
                report["alone"] = {peer: _alone(options, peer) for peer in options["peers"] if peer in ("oneflow", "torch")}
                common.write(_name(options), report, options["out"], say=False)
    except children.ChildFailed as failure:
        report["failed"] = str(failure)
        print(failure, file=sys.stderr)
    return report


def _reports(options: dict[str, Any]) -> Iterator[tuple[bool, dict[str, Any]]]:
    """What a child knows, whenever there is more, and whether it is all. Raises `children.ChildFailed`."""
    with children.Child(serve, options) as child:
        kind = "part"
        while kind == "part":
            kind, more = child.receive(options["limit"])
            yield kind != "part", more


def _alone(options: dict[str, Any], peer: str) -> dict[str, Any]:
    """Memory of a peer in a process of its own: in one with others the code of kernels counts for whoever loads it first."""
    asked = {**options, "peers": [peer], "repeats": 1, "steps": options["steps"][:1], "profile": [], "parity": False}
    *_, (_, more) = _reports(asked)
    return {"peak": more["peers"][peer].get("peak"), "weight_bytes": more["weight_bytes"]}


def _name(options: dict[str, Any]) -> str:
    kind = options["dtype"] or (gpu_cases.CASES[options["case"]].dtype if options["case"] in gpu_cases.CASES else "float16")
    if options["case"] == gpu_e2e.CASE:
        kind += f"-{options['scheduler']}"
    return f"gpu-{options['case']}-{kind}-batch{options['batch']}" + ("-tiny" if options["tiny"] else "")


@contextlib.contextmanager
def _fresh_caches(warm: bool) -> Iterator[None]:
    """Compilers of children start from nothing."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        before = {name: os.environ.get(name) for name in _CACHES}
        if not warm:
            if left := ", ".join(name for name in _CACHES if before[name]):
                print(f"caution: what {left} holds is not read without --warm", file=sys.stderr)
            os.environ.update({name: str(Path(folder) / name.lower()) for name in _CACHES})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def show(report: dict[str, Any]) -> None:
    """Print the tables of one case."""
    title = f"{_name(report['options'])}, {report.get('gpu', {}).get('name', '')}"
    options, peers = report["options"], report.get("peers", {})
    note = "MB: while it runs, beside the weights: held by torch's allocator, and by the driver; built: at most, of tensors"
    if report["case"] == gpu_e2e.CASE:
        keys = [f"{steps}-{output}" for steps in options["steps"] for output in options["outputs"]]
        heads = tuple(f"{key}: s" for key in keys)
        cells = {peer: [_cell(found.get("median_seconds", {}).get(key)) for key in keys] for peer, found in peers.items()}
    else:
        heads = ("ms: median (quartiles)", "x torch")
        cells = {peer: [_cell(found.get("median_ms")), _ratio(found, peers.get("torch", {}))] for peer, found in peers.items()}
    rows = [[peer, *cells[peer], *_rest(found)] for peer, found in peers.items()]
    common.table(title, ("peer", *heads, "first result s", "built MB", "MB", "driver MB", "from torch"), rows, note)
    if report.get("parity"):
        reference = report["parity"]["reference"]
        errors = {peer: found["error"] for peer, found in report["parity"]["peers"].items()}
        errors.setdefault("torch", report["parity"]["torch"])
        lines = [(peer, *(f"{error[k]:.2e}" for k in ("rms", "maximum"))) for peer, error in errors.items()]
        common.table(f"{title}: error against {reference}", ("peer", "RMS", "largest"), lines)
    for peer, found in peers.items():
        if "profile" in found:
            gpu_profile.show(f"{title}: {peer}", found["profile"])


def _cell(summary: common.Summary | None) -> str:
    return summary.show(1, 3) if summary else "failed"


def _ratio(found: dict[str, Any], torch_found: dict[str, Any]) -> str:
    return common.ratio(found["ms"], torch_found["ms"]).show() if "ms" in found and "ms" in torch_found else ""


def _rest(found: dict[str, Any]) -> list[str]:
    peak = found.get("peak", {})
    seconds = f"{found['first_seconds']:.1f}" if "first_seconds" in found else "failed"
    counts = found.get("built_bytes"), peak.get("reserved"), peak.get("used")
    megabytes = [f"{n / 1e6:.0f}" if n is not None else "" for n in counts]
    off = f"{found['difference']:.0e}" if "difference" in found else ""
    return [seconds, *megabytes, off if found.get("finite", True) else "not finite"]


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw what was measured beside the JSON file at `path`."""
    try:
        from . import plots
    except ImportError:
        print("no pictures: matplotlib is not installed")
        return
    title = f"{_name(report['options'])}, {report.get('gpu', {}).get('name', '')}"
    peers = report.get("peers", {})
    if report["case"] == gpu_e2e.CASE:
        keys = dict.fromkeys(key for found in peers.values() for key in found.get("seconds", {}))
        panels = {
            f"steps-output {key}": _measured({peer: found.get("seconds", {}).get(key) for peer, found in peers.items()}, 1.0)
            for key in keys
        }
    else:
        panels = {"": _measured({peer: found.get("ms") for peer, found in peers.items()}, 1000.0)}
    if peers and panels:
        plots.peers(title, panels, path.with_suffix(".png"))
    for peer, found in peers.items():
        if "profile" in found:
            target = path.with_name(f"{path.stem}-profile-{peer}.png")
            plots.profile(f"{title}: {peer}", gpu_profile.plotted(found["profile"]), target, rest="idle")


def _measured(values: dict[str, list[float] | None], scale: float) -> dict[str, dict[str, Any] | None]:
    """What `plots.peers` takes, of rounds in seconds times `scale`."""
    torch_values = values.get("torch")
    return {
        peer: {
            "seconds": common.summarize([v / scale for v in rounds]),
            "ratio_to_torch": common.ratio(rounds, torch_values) if torch_values else None,
        } if rounds else None
        for peer, rounds in values.items()
    }  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", default=["sd15-unet"], choices=CASES)
    parser.add_argument("--peers", nargs="+", default=list(gpu_peers.PEERS)[:4], choices=list(gpu_peers.PEERS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="times the usual batch, or images at a time")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="default: float16, for Flux bfloat16")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--parity", action="store_true", help="errors against the same weights in float64")
    parser.add_argument("--profile", nargs="*", choices=list(gpu_peers.PEERS), help="kernels of these peers (default: oneflow)")
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 30, 50], help="of an image")
    parser.add_argument("--outputs", nargs="+", default=["pt", "pil"], choices=("pt", "pil"), help="what an image becomes")
    parser.add_argument("--scheduler", default="ddim", choices=list(gpu_e2e.SCHEDULERS))
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a case may be silent before it is ended")
    parser.add_argument("--alone", action="store_true", help="memory of oneflow and torch each in a process of its own, too")
    parser.add_argument("--warm", action="store_true", help="compilers find what they kept: first results say nothing then")
    parser.add_argument("--out", help="folder for JSON and pictures")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.profile = [] if options.profile is None else (options.profile or ["oneflow"])
    if options.out and options.out.endswith(".json"):
        parser.error("--out is a folder here: each case has files of its own")
    return options


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if a bar is missed or anything failed."""
    options = parse(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU that torch can use here", file=sys.stderr)
        return 2
    command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if argv is None else argv)])
    good = True
    for case in options.case:
        for batch in options.batch:
            asked = {**vars(options), "case": case, "batch": batch}
            report = measure(asked, command)
            show(report)
            report["bars"] = gpu_bars.judge(case, report)
            path = common.write(_name(asked), report, options.out)
            if path is not None:
                plot(report, path)
            failed = "failed" in report or any("failed" in found for found in report.get("peers", {}).values())
            good = good and not failed and all(bar["passed"] for bar in report["bars"])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
