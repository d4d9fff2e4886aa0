"""The command line of the suite."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console

from . import (  # noqa: F401  (they register their cases)
    audio,
    autoencoders,
    cascade,
    controlnet,
    demo,
    flux,
    full,
    ip_adapter,
    kandinsky,
    newer,
    pag,
    pixart_sana_etc,
    qwen,
    sd3,
    sdxl,
    stable_diffusion,
    tiny,
    unconditional,
    video,
    video_transformers,
)
from .registry import CASES


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; 1 if any fails."""
    p = argparse.ArgumentParser(prog="python -m conformance", description="Numerical parity of OneFlow with PyTorch.")
    p.add_argument("--list", action="store_true", help="name the cases and end")
    p.add_argument("--only", action="append", metavar="CASE", help="this case; may be given several times")
    p.add_argument("--full", action="store_true", help="the models of full size as well")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file")
    options = p.parse_args(arguments)
    console = Console()
    if options.list:
        for case in CASES.values():
            console.print(f"{case.name:46} {case.about}{' (--full)' if case.full else ''}", highlight=False, markup=False)
        return 0
    if unknown := set(options.only or ()) - set(CASES):
        p.error(f"unknown case {', '.join(sorted(unknown))}; --list names them")
    chosen = [c for c in CASES.values() if (c.name in options.only if options.only else options.full or not c.full)]
    results = {}
    for case in chosen:
        console.rule(case.name)
        start = time.perf_counter()
        try:
            report = case.run()
        except Exception as error:  # one broken case must not hide the others
            console.print(f"{case.name}: {type(error).__name__}: {error}", markup=False, highlight=False)
            results[case.name] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
            continue
        report.print(console)
        results[case.name] = {**report.as_dict(), "seconds": time.perf_counter() - start}
    failed = [name for name, result in results.items() if not result["passed"]]
    console.rule()
    console.print(f"{len(results) - len(failed)} of {len(results)} cases passed", highlight=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}", highlight=False)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
