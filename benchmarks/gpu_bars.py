"""The bars that this package must keep to on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    find: Callable[[dict[str, Any]], float | None]
    unit: str = ""


def _peers(report: dict[str, Any], wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    """The results of those of `wanted` that were asked for."""
    asked = [report["peers"][peer] for peer in wanted if peer in report["peers"]]
    if not asked:
        raise NotAsked(f"without {' or '.join(wanted)}")
    return asked


def _against(
    report: dict[str, Any], wanted: tuple[str, ...], rounds: Callable[[dict[str, Any]], list[float] | None]
) -> float | None:
    """Median of the rounds' ratios to the fastest of `wanted`."""
    (ours,), others = _peers(report, ("oneflow",)), _peers(report, wanted)
    theirs = [found for other in others if (found := rounds(other))]
    values = rounds(ours)
    if not values or len(theirs) < len(others):
        return None
    best = min(theirs, key=lambda values: common.summarize(values).median)
    return common.ratio(values, best).median


def _step(report: dict[str, Any]) -> float | None:
    return _against(report, COMPILED, lambda peer: peer.get("ms"))


def _build(report: dict[str, Any]) -> float | None:
    (ours,) = _peers(report, ("oneflow",))
    seconds: float | None = ours.get("first_seconds")
    return seconds


def _memory(kind: str) -> Callable[[dict[str, Any]], float | None]:
    """Weights and all else that is taken above the CUDA context, of processes that ran one peer each."""

    def find(report: dict[str, Any]) -> float | None:
        if not report.get("options", {}).get("alone"):
            raise NotAsked("without --alone")
        _peers(report, ("oneflow",)), _peers(report, ("torch",))
        found = [report.get("alone", {}).get(peer) for peer in ("oneflow", "torch")]
        if not all(f and f.get("peak") for f in found):
            return None
        ours, theirs = (f["peak"][kind] + f["weight_bytes"] for f in found)
        share: float = ours / max(theirs, 1)
        return share

    return find


def _parity(report: dict[str, Any]) -> float | None:
    if not report.get("options", {}).get("parity"):
        raise NotAsked("without --parity")
    found = report.get("parity", {}).get("peers", {}).get("oneflow")
    # `excess` is of what is allowed, the worse of the root mean square and the largest error.
    return found["excess"] * found["factor"] if found else None


def _image(report: dict[str, Any]) -> list[float] | None:
    keys = [key for peer in report["peers"].values() for key in peer.get("seconds", {})]
    if report.get("options", {}).get("batch", 1) != 1 or (keys and "50-pt" not in keys):
        raise NotAsked("of one image, 50 steps, output pt")
    (ours,) = _peers(report, ("oneflow",))
    values: list[float] | None = ours.get("seconds", {}).get("50-pt")
    return values


def _image_seconds(report: dict[str, Any]) -> float | None:
    values = _image(report)
    return common.summarize(values).median if values else None


def _image_ratio(report: dict[str, Any]) -> float | None:
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


def judge(case: str, report: dict[str, Any]) -> list[dict[str, Any]]:
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
