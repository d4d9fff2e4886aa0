"""A process that compiles kernels of flash-attn-4 and quack-kernels for `cute_ahead`, for a GPU that it does not see.

It reads what to compile from its input, forks for each, and writes a byte to its output whenever one is done, and nothing else.
"""

import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import struct
import sys
import traceback
import types
from pathlib import Path
from typing import Any

# Seconds without a question after which it ends; and between looks at what is compiled.
_IDLE, _LOOK = 120.0, 0.02


def stand_in(root: str, *names: str) -> None:
    """Packages whose modules can be imported without what their ``__init__`` imports, which takes seconds (OneFlow)."""
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(root, *name.split(".")))]
        sys.modules[name] = package


def spare() -> None:
    """Spare the packages a third of the time that their import takes.

    quack gives functions to torch.compile, which imports its whole compiler for that, and nobody calls them here; and there is no
    garbage to look for.
    """
    import torch

    def unchanged(function: Any = None, *rest: Any, recompile_limit: int = 0, **options: Any) -> Any:  # quack looks for the limit
        function = options.get("fn", options.get("model", function))
        return function if function is not None else lambda given: given

    module: Any = torch
    module.compile = module.compiler.disable = unchanged
    gc.disable()


def load() -> None:
    """Import all that takes long, whatever is installed of it."""
    ours = [f"diffusers_oneflow.replay.cuda.{name}" for name in ("flash", "quack")]
    # A FakeTensorMode asks for the second.
    for name in (
        "torch._subclasses.fake_tensor", "torch._dynamo.config", *ours, "flash_attn.cute", "quack.epilogue.library",
        "quack.gemm_config",
    ):  # fmt: skip
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def read() -> tuple[str, list[Any]] | None:
    """The next question; None at the end."""
    size = os.read(0, 4)  # each question was written at once
    return pickle.loads(os.read(0, struct.unpack("<I", size)[0])) if len(size) == 4 else None


def compile_one(name: str, args: list[Any]) -> None:
    """Call a function of this package on tensors without numbers; what it asks of a GPU after it has compiled fails."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    module, function = name.rsplit(".", 1)
    call = getattr(importlib.import_module(f"diffusers_oneflow.replay.cuda.{module}"), function)
    with FakeTensorMode(), torch.no_grad():
        made = [torch.empty_strided(a[0], a[1], dtype=a[2], device="cuda:0") if isinstance(a, tuple) else a for a in args]
        call(*made)


def fork(name: str, args: list[Any], answers: int) -> int:
    """Compile it in a process of its own, and return its number.

    Args:
        answers: what that process must not hold open: who waits for answers would not see the end of this one.
    """
    child = os.fork()
    if not child:
        try:
            os.close(answers)
            os.close(0)
            compile_one(name, args)
        except BaseException:  # the process that asked compiles what failed, and says so
            traceback.print_exc()
        finally:
            os._exit(0)
    return child


def main() -> None:
    """Compile what is asked for, as many at once as there are cores."""
    here = str(Path(__file__).parent)  # beside a module that is called quack, too
    sys.path[:] = [entry for entry in sys.path if entry != here]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answers = os.dup(1)
    os.dup2(2, 1)  # for what the packages print
    stand_in(sys.argv[1], "diffusers_oneflow", *(f"diffusers_oneflow.{name}" for name in ("replay", "replay.cuda", "passes")))
    spare()
    load()
    waiting: list[tuple[str, list[Any]]] = []
    running: set[int] = set()
    told, cores = True, len(os.sched_getaffinity(0))
    while told or waiting or running:
        for child in list(running):
            if os.waitpid(child, os.WNOHANG)[0]:
                running.remove(child)
                os.write(answers, b".")
        while waiting and len(running) < cores:
            running.add(fork(*waiting.pop(0), answers))
        if not told:
            select.select([], [], [], _LOOK)
        elif select.select([0], [], [], _LOOK if running else _IDLE)[0]:
            asked = read()
            told = asked is not None
            waiting += [asked] if asked is not None else []
        elif not running:
            break


if __name__ == "__main__":
    main()
