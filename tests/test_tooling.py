"""What checks and releases the code: `make lint`, the hooks before a commit, the workflows, the stubs of the native modules."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffusers_oneflow import engine

ROOT = Path(__file__).parent.parent
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").iterdir()}
STEPS = [
    (name, step) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"].values() for step in job["steps"]
]  # fmt: skip


def linted() -> list[list[str]]:
    """The commands of `make lint`, by words."""
    said = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line.split() for line in said.splitlines() if re.match(r"\.venv/bin/(ruff|mypy|clang-format)\b", line)]


def test_the_hooks_run_what_lint_runs():
    (local,) = HOOKS["repos"]
    assert local["repo"] == "local" and all(hook["language"] == "system" for hook in local["hooks"])
    hooks = [[w for w in hook["entry"].split() if w != "--force-exclude"] for hook in local["hooks"]]
    assert len(hooks) == 4
    # Hooks get the names of files, where lint names all.
    assert hooks == [command[: len(hook)] for command, hook in zip(linted(), hooks)]


def test_lint_looks_at_all_native_sources():
    folders = ROOT.glob("diffusers_oneflow/*/csrc")
    sources = {str(p.relative_to(ROOT)) for folder in folders for p in folder.rglob("*") if p.suffix in (".cpp", ".h")}
    assert len(sources) > 50 and sources == set(linted()[-1][3:])


def test_the_hooks_are_valid():
    check = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actions_are_pinned_by_major_version():
    used = {step["uses"] for _, step in STEPS if "uses" in step}
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action) for action in used), used


def test_workflows_run_targets_that_there_are():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join(step["run"] for _, step in STEPS if "run" in step)
    named = set(re.findall(r"^make ([a-z-]+)", commands, re.MULTILINE))
    assert {"test", "sdist", "wheel", "conformance-ci"} <= named <= targets
    assert all((ROOT / script).is_file() for script in re.findall(r"^bash (\S+)", commands, re.MULTILINE))


def test_a_release_is_tested_before_it_is_published():
    jobs = WORKFLOWS["release.yml"]["jobs"]
    order = [step.get("run", "") for step in jobs["build"]["steps"]]
    tag = next(run for run in order if "GITHUB_REF_NAME" in run)
    for version, fits in (("0.1.0", True), ("0.1.00", False), ("1.0", False)):
        text = 'x = 1\n__version__ = "0.1.0"\n'
        command = ["bash", "-ec", tag.replace("diffusers_oneflow/__init__.py", "-")]
        done = subprocess.run(command, input=text, text=True, env={"GITHUB_REF_NAME": f"v{version}", "PATH": "/usr/bin:/bin"})
        assert (done.returncode == 0) == fits, version
    places = [next(i for i, run in enumerate(order) if run.startswith(f"make {target}")) for target in ("test", "sdist", "wheel")]
    assert order.index(tag) < places[0] and places == sorted(places)
    publish = jobs["publish"]
    assert publish["needs"] == "build" and publish["permissions"] == {"id-token": "write"}
    assert not [step for step in publish["steps"] if "password" in step.get("with", {})]


@pytest.mark.parametrize("name", ["runtime._native", "kernels._pack"])
def test_the_stubs_name_what_the_native_modules_have(name):
    engine.load()
    module = importlib.import_module(f"diffusers_oneflow.{name}")
    stub = ast.parse((ROOT / f"diffusers_oneflow/{name.replace('.', '/')}.pyi").read_text())
    defined = {node.name: node for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert set(defined) == {n for n in vars(module) if not n.startswith("__")}
    for node in defined.values():
        if isinstance(node, ast.ClassDef):
            members = {m.name for m in node.body} - {"__init__"}
            assert members == {n for n in vars(getattr(module, node.name)) if not n.startswith("__")}, node.name
