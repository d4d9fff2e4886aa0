"""Builds the native runtime and the kernel pack; everything else is in pyproject.toml."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HOOK = "diffusers_oneflow_mock.pth"
RUNTIME = Path("diffusers_oneflow/runtime/csrc")
PACK = Path("diffusers_oneflow/kernels/csrc")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# One library each of the same sources; which one is used is decided where it runs.
AVX512BF16 = [*AVX512, "-mavx512bf16"]
AMX = [*AVX512BF16, "-mamx-tile", "-mamx-bf16"]
INSTRUCTION_SETS = {"avx2": AVX2, "avx512": AVX512, "avx512bf16": AVX512BF16, "amx": AMX}


def native() -> list[Extension]:
    """The extensions for the one Python that OneFlow 0.9.0 exists for; none elsewhere."""
    if sys.version_info[:2] != (3, 10) or sys.platform != "linux":
        return []
    spec = importlib.util.find_spec("oneflow")
    if spec is None:
        sys.exit("oneflow 0.9.0 must be installed to build the native parts: pip install oneflow==0.9.0")
    package = Path(spec.origin).parent
    return [
        _beside_oneflow("diffusers_oneflow.runtime._native", RUNTIME, package, ["liboneflow", "libof_protoobj", "libprotobuf"]),
        _beside_oneflow("diffusers_oneflow.kernels._pack", PACK, package, ["liboneflow", "libof_protoobj", "libprotobuf"]),
        *(_math(name, flags) for name, flags in INSTRUCTION_SETS.items()),
    ]


def _beside_oneflow(name: str, folder: Path, package: Path, libraries: list[str]) -> Extension:
    where = package.parent / "oneflow.libs"
    linked = [next(where.glob(f"{library}-*.so*")).name for library in libraries]
    return Extension(
        name,
        # Both redirect calls of liboneflow.
        sources=sorted({*map(str, folder.glob("*.cpp")), str(RUNTIME / "plt.cpp")}),
        depends=sorted(map(str, folder.rglob("*.h"))),
        # OneFlow's headers come last: they hold copies of old system headers. It is built with the old ABI.
        extra_compile_args=[
            "-std=c++17", "-O2", "-fvisibility=hidden", "-D_GLIBCXX_USE_CXX11_ABI=0", "-DHALF_ENABLE_CPP11_USER_LITERALS=0",
            f"-I{folder}", f"-I{folder}/stubs", "-idirafter", str(package / "include"),
        ],
        # By file name, without a path: oneflow is always loaded first and has them in memory.
        extra_link_args=[f"-L{where}", *(f"-l:{name}" for name in linked)],
        language="c++",
    )  # fmt: skip


def _math(name: str, flags: list[str]) -> Extension:
    """No Python module, but a library that the pack opens."""
    return Extension(
        f"diffusers_oneflow.kernels._math_{name}",
        sources=sorted(map(str, (PACK / "math").glob("*.cpp"))),
        depends=sorted(map(str, (PACK / "math").glob("*.h"))),
        # Compiled for OpenMP, but linked to none: the calls go to the library that torch has loaded.
        extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-fopenmp", "-ffp-contract=fast", *flags],
        language="c++",
    )


class WithHook(build_py):
    """Puts the hook of mock torch beside the packages: into site-packages itself, where Python reads ``*.pth``.

    A wheel gets all that lies in the build folder. An editable one gets nothing from there: its own folder, which the
    command ``install`` knows by then, is the place.
    """

    def run(self):
        super().run()
        self.copy_file(HOOK, self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib)

    def get_source_files(self):
        return [*super().get_source_files(), HOOK]


setup(ext_modules=native(), cmdclass={"build_py": WithHook})
