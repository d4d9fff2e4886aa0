"""The patch for diffusers: it applies, its own tests pass, and this package uses it where it is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

ROOT = Path(__file__).parent.parent
PATCH = ROOT / "upstream/diffusers/backends.patch"


@pytest.fixture(scope="module")
def patched(tmp_path_factory) -> Path:
    """A folder with `src/diffusers`, a patched copy of the installed one, and the patch's tests and page."""
    where = tmp_path_factory.mktemp("patched")
    shutil.copytree(Path(diffusers.__file__).parent, where / "src/diffusers", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["patch", "-p1", "--fuzz=0", "-i", str(PATCH)], cwd=where, check=True, capture_output=True)
    return where


def python(patched: Path, *arguments: str) -> str:
    """What Python prints with the patched diffusers first, and without this package's own way into `import torch`."""
    path = os.pathsep.join((str(patched / "src"), str(ROOT)))
    variables = {"PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=patched, capture_output=True, text=True, timeout=600, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass(patched):
    said = python(patched, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/pipelines/test_pipelines_backends.py")
    assert "10 passed" in said


def test_no_example_of_diffusers_uses_a_keyword_that_raises_now(patched):
    uses = re.compile(r"\.to\([^)]*\b(?:torch_device|torch_dtype)=")
    for file in (patched / "src/diffusers").rglob("*.py"):
        assert not uses.search(file.read_text()), file


def test_the_patch_is_small():
    lines = PATCH.read_text().splitlines()
    changed = [line for line in lines if line[:1] in "+-" and not line.startswith(("+++", "---"))]
    assert len([line for line in changed if line.startswith("-")]) == 4  # the two signatures, two examples
    assert {line.split(" b/")[1] for line in lines if line.startswith("diff --git")} == {
        "docs/source/en/optimization/oneflow.md", "src/diffusers/modular_pipelines/modular_pipeline.py",
        "src/diffusers/pipelines/pipeline_utils.py", "src/diffusers/utils/backend_utils.py",
        "src/diffusers/pipelines/latent_consistency_models/pipeline_latent_consistency_img2img.py",
        "src/diffusers/pipelines/latent_consistency_models/pipeline_latent_consistency_text2img.py",
        "tests/pipelines/test_pipelines_backends.py",
    }  # fmt: skip


SMOKE = """
import diffusers
import diffusers_oneflow
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers_oneflow.backend import OneFlowBackend
assert diffusers.__file__.startswith({folder!r}), diffusers.__file__
for cls in (DiffusionPipeline, ModularPipeline):
    assert not hasattr(cls.to, "_takes_backend") and "patched" in cls.to.__code__.co_filename
from conformance import flux, stable_diffusion
from conformance.registry import CASES
for name in ("StableDiffusionImg2ImgPipeline", "FluxPipeline"):
    report = CASES[name].run()
    assert report.passed, name
pipe = next(e for e in stable_diffusion.ENTRIES if e.pipeline == "StableDiffusionPipeline").make()
pipe.to("cpu", backend="oneflow")
assert OneFlowBackend.is_attached(pipe)
assert not OneFlowBackend.is_attached(pipe.to(backend="torch"))
pipe = diffusers_oneflow.OneFlowStableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
assert OneFlowBackend.is_attached(pipe)
print("right")
"""


def test_pipelines_run_through_it(patched):
    assert python(patched, "-c", SMOKE.format(folder=str(patched))).endswith("right\n")


def test_it_is_formatted_as_diffusers_is(patched):
    new = ["tests/pipelines/test_pipelines_backends.py", "src/diffusers/utils/backend_utils.py"]
    check = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--line-length", "119", "--target-version", "py310"]
    done = subprocess.run([*check, *new], cwd=patched, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert all(len(line) <= 119 for path in new for line in (patched / path).read_text().splitlines())
