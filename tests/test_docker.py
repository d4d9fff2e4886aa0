"""The Dockerfile without an engine that builds it, and the demo that its container runs."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_oneflow

from . import docker_steps

ROOT = Path(__file__).parent.parent
# Beside this Python, whose environment need not be active.
HADOLINT = shutil.which("hadolint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
STEPS = docker_steps.steps(ROOT / "Dockerfile")


def sources() -> list[str]:
    """What is copied from the folder that the image is built in."""
    copies = [rest for step, rest in STEPS if step == "COPY" and not rest.startswith("--from")]
    return [name for rest in copies for name in rest.split()[:-1]]


def test_what_is_copied_is_there_and_not_ignored():
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    for name in sources():
        assert (ROOT / name).exists() and f"!{name}" in rules, name
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources())


def test_bases_are_pinned_and_slim_and_users_are_not_root():
    arguments = dict(rest.split("=", 1) for step, rest in STEPS if step == "ARG")
    assert re.fullmatch(r"3\.10\.\d+-slim-\w+", arguments["PYTHON"]) and arguments["DEVICE"] == "cuda"
    stages = [rest.split(" AS ") for step, rest in STEPS if step == "FROM"]
    assert [s[0] for s in stages] == ["python:${PYTHON}", "python:${PYTHON}", "cpu", "${DEVICE}"]
    assert {s[1] for s in stages[:-1]} == {"build", "cpu", "cuda"}
    users = [rest for step, rest in STEPS if step == "USER"]
    assert users == ["1000", "0", "1000"]  # for one step alone: what Triton needs on a GPU
    assert [rest for step, rest in STEPS[STEPS.index(("USER", "0")) + 1 :] if step in ("RUN", "USER")][1:] == ["1000"]
    assert "gcc" in STEPS[STEPS.index(("USER", "0")) + 1][1]
    for step, rest in STEPS:
        if step == "RUN" and "pip install" in rest:
            assert "requirements.lock" in rest or "-r build.txt" in rest, rest


def test_the_files_of_the_build_stage_make_a_package(tmp_path):
    """The context as Docker sees it: setup.py finds all its sources, the hook and the model in it."""
    hidden = [r for r in (ROOT / ".dockerignore").read_text().split()[1:] if not r.startswith("!")]
    for name in sources():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=lambda folder, names: {
                n for n in names if any(fnmatch.fnmatch(n, rule.removeprefix("**/")) for rule in hidden)
            })  # fmt: skip
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "setup.py", "-q"]
    subprocess.run([*build, "build_py", "-d", "built"], cwd=tmp_path, check=True, capture_output=True)
    built = {str(p.relative_to(tmp_path / "built")) for p in (tmp_path / "built").rglob("*")}
    assert {"diffusers_oneflow/mock.py", "diffusers_oneflow/demo/model/unet/config.json"} <= built
    said = "import setup_extensions"  # the list of sources is made when setup.py runs
    code = f"import setuptools; setuptools.setup = lambda **k: print([s for e in k['ext_modules'] for s in e.sources]); {said}"
    (tmp_path / "setup_extensions.py").write_text((tmp_path / "setup.py").read_text())
    listed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    found = {str(p.relative_to(tmp_path)) for p in (tmp_path / "diffusers_oneflow").rglob("*.cpp")}
    assert found == {s for s in re.findall(r"'([^']+\.cpp)'", listed)}


def test_every_step_of_the_dockerfile_works(tmp_path):
    """As commands in plain folders (`docker_steps`); then its command, and that of the manual, in the image's place."""
    image = docker_steps.build(ROOT, tmp_path, DEVICE="cpu")
    (wheel,) = (image.root / "opt/wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        held = set(packed.namelist())
    assert {"diffusers_oneflow/demo/model/unet/config.json", "diffusers_oneflow_mock.pth"} <= held
    libraries = {name.partition(".")[0].rpartition("/")[2] for name in held if name.endswith(".so")}
    assert libraries == {"_native", "_pack", "_math_avx2", "_math_avx512", "_math_avx512bf16", "_math_amx"}
    # Nothing but the wheel would have been installed: the lock has all that it asks for.
    (would,) = re.findall(r"Would install (.*)", "".join(image.said))
    assert would.split() == [f"diffusers_oneflow-{diffusers_oneflow.__version__}"]
    assert any("kernel pack" in said for said in image.said) and (image.root / "home/oneflow").stat().st_mode & 0o777 == 0o777
    where = image.start(["python3", "-c", "import diffusers_oneflow; print(diffusers_oneflow.__file__)"]).stdout.strip()
    assert Path(where).is_relative_to(image.root)
    assert "--prompt" in image.start().stdout
    (tmp_path / "mine").mkdir()
    command = ["python3", "/demos/t2i.py", "--prompt", "a red circle", "--model", "demo", "--steps", "1"]
    image.start(command, tmp_path / "mine", HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    assert Image.open(tmp_path / "mine/a-red-circle-0.png").size == (128, 128)


@pytest.fixture
def draw(pipe, tmp_path):
    """draw(*arguments): t2i.py in a clean folder, with a tiny model in $HF_HOME as someone/tiny."""
    cache = tmp_path / "hf/hub/models--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0" * 40)
    pipe.save_pretrained(cache / "snapshots" / ("0" * 40))
    (tmp_path / "clean").mkdir()

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "demos/t2i.py"), "--prompt", "a red circle!", "--device", "cpu", *arguments]
        return subprocess.run(
            command, cwd=tmp_path / "clean", capture_output=True, text=True, timeout=600,
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", **variables},
        )  # fmt: skip

    return run


def test_the_demo_draws_with_a_model_from_hf_home(draw, tmp_path):
    done = draw("--model", "someone/tiny", "--steps", "2", "--images", "2", "--out", "made")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "made/a-red-circle-0.png: 16x16\nmade/a-red-circle-1.png: 16x16\n"
    first, second = (Image.open(tmp_path / f"clean/made/a-red-circle-{i}.png").convert("RGB") for i in (0, 1))
    assert first.size == (16, 16) and first.tobytes() != second.tobytes()


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_the_demo_draws_with_a_folder(draw, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "folder")
    done = draw("--model", "../folder", "--steps", "2", "--seed", "3", "--size", "24")
    assert (done.returncode, done.stdout) == (0, "a-red-circle-0.png: 24x24\n"), done.stderr
    generator = torch.Generator().manual_seed(3)
    image = pipe("a red circle!", num_inference_steps=2, generator=generator, width=24, height=24).images[0]
    assert np.abs(pixels(tmp_path / "clean/a-red-circle-0.png") - np.asarray(image).astype(int)).max() <= 1
    # In bfloat16 on OneFlow, too: what runs in torch says so.
    done = draw("--model", "../folder", "--steps", "2", "--dtype", "bfloat16", "--out", "half")
    assert (done.returncode, done.stdout) == (0, "half/a-red-circle-0.png: 16x16\n") and "ran in torch" not in done.stderr


def test_the_demo_draws_with_the_model_of_the_package(draw, demo_pipe, tmp_path):
    done = draw("--model", "demo", "--steps", "2", "--seed", "3", HF_HOME=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    image = demo_pipe("a red circle!", num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images[0]
    assert done.stdout == f"a-red-circle-0.png: {image.width}x{image.height}\n"
    assert np.abs(pixels(tmp_path / "clean/a-red-circle-0.png") - np.asarray(image).astype(int)).max() <= 1


def test_a_model_that_is_not_there_is_said(draw):
    done = draw("--model", "someone/else")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "t2i.py: someone/else could not be loaded" in done.stderr and "--model demo" in done.stderr


def test_the_token_reaches_the_hub(monkeypatch):
    from huggingface_hub import get_token

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_not_a_token")
    assert get_token() == "hf_not_a_token"


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    done = subprocess.run([HADOLINT, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
