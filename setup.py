"""Builds the native runtime; everything else is in pyproject.toml."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup


def native_runtime() -> list[Extension]:
    """The extension for the one Python that OneFlow 0.9.0 exists for; none elsewhere."""
    if sys.version_info[:2] != (3, 10) or sys.platform != "linux":
        return []
    spec = importlib.util.find_spec("oneflow")
    if spec is None:
        sys.exit("oneflow 0.9.0 must be installed to build the native runtime: pip install oneflow==0.9.0")
    package = Path(spec.origin).parent
    libraries = package.parent / "oneflow.libs"
    linked = [next(libraries.glob(f"{name}-*.so*")).name for name in ("liboneflow", "libof_protoobj", "libprotobuf")]
    extension = Extension(
        "diffusers_oneflow.runtime._native",
        sources=sorted(str(p) for p in Path("diffusers_oneflow/runtime/csrc").glob("*.cpp")),
        depends=sorted(str(p) for p in Path("diffusers_oneflow/runtime/csrc").glob("*.h")),
        # OneFlow's headers come last: they hold copies of old system headers. It is built with the old ABI.
        extra_compile_args=[
            "-std=c++17", "-O2", "-fvisibility=hidden", "-D_GLIBCXX_USE_CXX11_ABI=0", "-idirafter", str(package / "include"),
        ],
        # By file name, without a path: oneflow is always loaded first and has them in memory.
        extra_link_args=[f"-L{libraries}", *(f"-l:{name}" for name in linked)],
        language="c++",
    )  # fmt: skip
    return [extension]


setup(ext_modules=native_runtime())
