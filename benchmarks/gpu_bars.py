"""The bars that this package must keep to on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

from . import common
from .gpu_peers import COMPILED

_UNETS = ("sd15-unet", "sdxl-unet", "sd3-transformer", "flux-transformer")
_VAES = ("vae-512", "vae-1024")
_STEPS = (*_UNETS, *_VAES, "text-encoder")


class NotAsked(LookupError):
    """A run was not asked for what a bar needs."""


@dataclass(frozen=True)
class Bar:
    """At most `limit`, in one of `cases`.

    Attributes:
        find: called with the case's report: the value, or None where what was asked for has no result; raises `NotAsked`.
    """

    cases: tuple[str, ...]
    name: str
    limit: float
    find: Callable[[dict], float | None]
    unit: str = ""


def _peers(report: dict, wanted: tuple[str, ...]) -> list[dict]:
    """The results of those of `wanted` that were asked for."""
    asked = [report["peers"][peer] for peer in wanted if peer in report["peers"]]
    if not asked:
        raise NotAsked(f"without {' or '.join(wanted)}")
    return asked


def _against(report: dict, wanted: tuple[str, ...], rounds: Callable[[dict], list | None]) -> float | None:
    """Median of the rounds' ratios to the fastest of `wanted`."""
    (ours,), others = _peers(report, ("oneflow",)), _peers(report, wanted)
    theirs = [found for other in others if (found := rounds(other))]
    if not rounds(ours) or len(theirs) < len(others):
        return None
    best = min(theirs, key=lambda values: common.summarize(values).median)
    return common.ratio(rounds(ours), best).median


def _step(report: dict) -> float | None:
    return _against(report, COMPILED, lambda peer: peer.get("ms"))


def _build(report: dict) -> float | None:
    (ours,) = _peers(report, ("oneflow",))
    return ours.get("first_seconds")


def _memory(kind: str) -> Callable[[dict], float | None]:
    """Weights and all else that is taken above the CUDA context, of processes that ran one peer each."""

    def find(report: dict) -> float | None:
        if not report.get("options", {}).get("alone"):
            raise NotAsked("without --alone")
        _peers(report, ("oneflow",)), _peers(report, ("torch",))
        found = [report.get("alone", {}).get(peer) for peer in ("oneflow", "torch")]
        if not all(f and f.get("peak") for f in found):
            return None
        ours, theirs = (f["peak"][kind] + f["weight_bytes"] for f in found)
        return ours / max(theirs, 1)

    return find


def _parity(report: dict) -> float | None:
    if not report.get("options", {}).get("parity"):
        raise NotAsked("without --parity")
    found = report.get("parity", {}).get("peers", {}).get("oneflow")
    # `excess` is of what is allowed, the worse of the root mean square and the largest error.
    return found["excess"] * found["factor"] if found else None


def _image(report: dict) -> list | None:
    keys = [key for peer in report["peers"].values() for key in peer.get("seconds", {})]
    if report.get("options", {}).get("batch", 1) != 1 or (keys and "50-pt" not in keys):
        raise NotAsked("of one image, 50 steps, output pt")
    (ours,) = _peers(report, ("oneflow",))
    return ours.get("seconds", {}).get("50-pt")


def _image_seconds(report: dict) -> float | None:
    values = _image(report)
    return common.summarize(values).median if values else None


def _image_ratio(report: dict) -> float | None:
    _image(report)
    return _against(report, COMPILED, lambda peer: peer.get("seconds", {}).get("50-pt"))


BARS = (
    Bar((*_UNETS, *_VAES), "oneflow / the fastest torch.compile", 0.85, _step),
    Bar(("sd15-unet",), "capture and build, to the first result", 15.0, _build, " s"),
    # All memory that torch's allocator holds, that of graphs included; and what the driver has given out, code of kernels too.
    Bar(_STEPS, "peak memory, weights included, oneflow / torch", 1.1, _memory("reserved")),
    Bar(_STEPS, "the same by the driver", 1.1, _memory("used")),
    Bar(_STEPS, "error against the wide dtype, oneflow / torch", 1.2, _parity),
    Bar(("sd15-e2e",), "50 steps, oneflow / the fastest torch.compile", 0.85, _image_ratio),
    Bar(("sd15-e2e",), "50 steps, one image", 0.35, _image_seconds, " s"),
)


def judge(case: str, report: dict) -> list[dict]:
    """Print PASS or FAIL for the bars of this case, and return them; what was not asked for is not judged."""
    judged = []
    for bar in BARS:
        if case not in bar.cases:
            continue
        name = f"{case}: {bar.name}"
        try:
            value = bar.find(report)
        except NotAsked as reason:
            print(f"not judged: {name}, {reason}")
            continue
        if value is None:
            print(f"FAIL {name}: no result")
        passed = value is not None and common.verdict(name, value, bar.limit, bar.unit)
        judged.append({"bar": bar.name, "limit": bar.limit, "value": value, "passed": passed})
    return judged
