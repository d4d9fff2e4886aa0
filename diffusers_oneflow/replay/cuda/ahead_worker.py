"""A process that compiles kernels for `ahead`, which tells it on its input what to compile.

It is run as a file, so that nothing else of this package, and no torch, is imported: that takes seconds.
"""

import importlib.util
import pickle
import sys
import types
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def module(name: str, path: str) -> Any:
    """A module by its name and file; the packages above it stay empty."""
    if name not in sys.modules:
        above = name.split(".")[:-1]
        for depth in range(len(above)):
            package = ".".join(above[: depth + 1])
            sys.modules.setdefault(package, types.ModuleType(package))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def compile_one(asked: dict[str, Any]) -> None:
    """Have Triton compile a kernel for a GPU that need not be here, and keep it on disk."""
    function = getattr(module(asked["module"], asked["path"]), asked["name"])
    source = ASTSource(function, asked["signature"], asked["constants"], asked["attrs"])
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in asked["options"].items()}
    triton.compile(source, target=GPUTarget(*asked["target"]), options=options)


def main() -> None:
    """Compile what the input says; what fails is left to who asked."""
    told = pickle.load(sys.stdin.buffer)
    module(*told["own"])
    for asked in told["kernels"]:
        try:
            compile_one(asked)
        except Exception:  # whatever a compiler raises: the process that asked compiles it, and says so
            continue


if __name__ == "__main__":
    main()
