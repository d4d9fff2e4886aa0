"""What a fresh machine needs: a Python that is found, a lock file that is whole, archives that hold and run all there is."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusers_oneflow

ROOT = Path(__file__).parent.parent
PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
OLD = {"python_version": "3.10", "python_full_version": "3.10.13", "sys_platform": "linux"}
NEW = {**OLD, "python_version": "3.12", "python_full_version": "3.12.1"}
SETS = ("amx", "avx2", "avx512", "avx512bf16")


def locked() -> dict[str, str]:
    """Package -> pinned version."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found) if not match]
    return {canonicalize_name(m[1]): m[2] for m in found}


def declared(environment: dict) -> list[Requirement]:
    """What pyproject.toml asks for with all extras, on such a Python."""
    texts = [*PROJECT["dependencies"], *(t for extra in PROJECT["optional-dependencies"].values() for t in extra)]
    return [r for r in map(Requirement, texts) if r.marker is None or r.marker.evaluate(environment)]


def test_the_lock_pins_what_pyproject_asks_for():
    pins = locked()
    for requirement in declared(OLD):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_lock_is_closed():
    """Each locked package finds everything that it needs in the lock."""
    pins = locked()
    for name in pins:
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in pins, f"{name} needs {needed.name}"


def test_the_engine_is_asked_for_on_the_python_that_it_exists_for_only():
    def names(environment):
        return {r.name for r in declared(environment)}

    assert names(OLD) - names(NEW) == {"oneflow", "nvidia-cublas-cu11", "nvidia-cudnn-cu11", "protobuf", "numpy"}


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def find(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run the search with nothing on PATH but what the test put into `tmp_path`/bin, and basic tools."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("ls", "sort", "cat"):
        (tools / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
    environment = {"PATH": f"{tmp_path / 'bin'}:{tools}", "HOME": str(tmp_path), **variables}
    return subprocess.run(
        ["/bin/bash", str(ROOT / "scripts/find_python.sh")], env=environment, capture_output=True, text=True, timeout=60
    )


SHIM = 'echo "pyenv: python3.10: command not found" >&2; exit 127'


def test_a_shim_that_does_not_run_is_passed_over(tmp_path):
    script(tmp_path / "bin/python3.10", SHIM)
    script(tmp_path / "bin/python3", f'exec "{sys.executable}" "$@"')
    found = find(tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == sys.executable


def test_another_version_is_passed_over(tmp_path):
    script(tmp_path / "bin/python3", f"exec {sys.executable} -c 'import sys; sys.exit(1)'")
    assert find(tmp_path).returncode == 1


def test_folders_of_pyenv_are_looked_into(tmp_path):
    script(tmp_path / "bin/python3.10", SHIM)
    script(tmp_path / ".pyenv/versions/3.10.9/bin/python3.10", SHIM)
    script(tmp_path / ".pyenv/versions/3.10.4/bin/python3.10", f'exec "{sys.executable}" "$@"')
    assert find(tmp_path).stdout.strip() == sys.executable


def test_uv_is_asked(tmp_path):
    script(tmp_path / "bin/uv", f'[ "$1 $2" = "python find" ] && echo "{sys.executable}"')
    assert find(tmp_path).stdout.strip() == sys.executable


def test_without_python_the_message_says_what_to_do(tmp_path):
    found = find(tmp_path)
    assert (found.returncode, found.stdout) == (1, "")
    assert "No Python 3.10 found" in found.stderr
    assert "uv python install 3.10" in found.stderr


def test_a_python_that_was_named_and_does_not_fit_is_an_error(tmp_path):
    script(tmp_path / "bin/python3", f'exec "{sys.executable}" "$@"')
    found = find(tmp_path, PYTHON="/no/such/python")
    assert (found.returncode, found.stdout) == (1, "")
    assert "/no/such/python" in found.stderr


@pytest.mark.parametrize(
    ("changed", "runs"), [(None, False), ("requirements.lock", True), ("setup.py", True), ("diffusers_oneflow_mock.pth", True)]
)
def test_setup_runs_again_only_when_something_changed(tmp_path, changed, runs):
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "setup.py", "diffusers_oneflow_mock.pth"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        os.utime(tmp_path / name, (1_000_000, 1_000_000))
    script(tmp_path / ".venv/bin/python", "exit 0")
    (tmp_path / ".venv/.ready").touch()
    os.utime(tmp_path / ".venv/.ready", (2_000_000, 2_000_000))
    if changed:
        os.utime(tmp_path / changed, (3_000_000, 3_000_000))
    for target, command in (("demo", "diffusers_oneflow.demo.compare"), ("test", "pytest")):
        said = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert ("pip install" in said) == runs
        assert command in said


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def archive(tmp_path_factory, tracked) -> Path:
    """The source archive of the tracked files."""
    where = tmp_path_factory.mktemp("archive")
    for name in tracked:
        (where / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (where / "tree" / name).symlink_to(ROOT / name)
    code = "from setuptools import build_meta; print(build_meta.build_sdist('../out'))"
    (where / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=where / "tree", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = (where / "out").iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(archive, tmp_path_factory) -> Path:
    """The wheel of the source archive. Its native parts are those that run here: to compile them takes minutes."""
    where = tmp_path_factory.mktemp("wheel")
    shutil.unpack_archive(archive, where / "tree")
    (tree,) = (where / "tree").iterdir()
    package = Path(diffusers_oneflow.__file__).parent
    built = tree / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/diffusers_oneflow"
    for library in package.rglob("*.so"):
        (built / library.relative_to(package)).parent.mkdir(parents=True, exist_ok=True)
        # Newer than its sources, so that it is taken as it is.
        shutil.copyfile(library, built / library.relative_to(package))
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", where / "out"],
        cwd=tree, capture_output=True, text=True, env={**os.environ, "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = (where / "out").iterdir()
    return made


def test_the_source_archive_holds_every_file_of_the_package(archive, tracked):
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    package = {name for name in tracked if name.startswith("diffusers_oneflow/")}
    assert len(package) > 50
    wanted = {*package, "diffusers_oneflow_mock.pth", "setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert wanted <= held, sorted(wanted - held)


def test_the_wheel_holds_the_package_alone(wheel, tracked):
    with zipfile.ZipFile(wheel) as packed:
        held = set(packed.namelist())
    package = {name for name in tracked if name.startswith("diffusers_oneflow/")}
    assert package <= held, sorted(package - held)
    others = {name for name in held - package if ".dist-info/" not in name}
    names = ("runtime/_native", "kernels/_pack", *(f"kernels/_math_{name}" for name in SETS))
    native = {f"diffusers_oneflow/{name}{sysconfig.get_config_var('EXT_SUFFIX')}" for name in names}
    assert others == {"diffusers_oneflow_mock.pth", *native}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


def test_the_version_stands_in_one_place(archive, wheel):
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert archive.name == f"diffusers_oneflow-{diffusers_oneflow.__version__}.tar.gz"
    assert wheel.name.split("-")[1] == diffusers_oneflow.__version__
    changes = re.findall(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[0] == diffusers_oneflow.__version__


def test_an_index_would_take_both(archive, wheel):
    check = [sys.executable, "-m", "twine", "check", "--strict", str(archive), str(wheel)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """The Python of a new environment: the wheel was installed into it, all other packages are those of this one."""
    where = tmp_path_factory.mktemp("fresh")
    venv.create(where, symlinks=True)
    install = [sys.executable, "-m", "pip", "--python", where / "bin/python", "install", "-q", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    installed = next(p for p in map(Path, sys.path) if (p / "diffusers").is_dir())
    # Of a folder that comes in this way Python reads no *.pth: an editable install of this package there is not found.
    next(where.glob("lib/python*/site-packages")).joinpath("others.pth").write_text(f"{installed}\n")
    return where / "bin/python"


# What is said of the quick start once it has run.
AFTERWARDS = """
import shutil, sys
from pathlib import Path
import diffusers_oneflow

assert Path(diffusers_oneflow.__file__).is_relative_to(sys.prefix), diffusers_oneflow.__file__
assert not any(map(shutil.which, ("g++", "c++", "cc", "gcc", "clang")))
image.save("image.png")
print(diffusers_oneflow.__version__, image.size, diffusers_oneflow.explain(pipe, show=False).fallbacks)
"""


def test_the_quick_start_runs_where_the_wheel_is_installed(fresh, tmp_path):
    """Outside of the repository, without a compiler."""
    start = re.search(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert start.count('"path/or/repo"') == 1 and "diffusers_oneflow" not in start
    (tmp_path / "start.py").write_text("import sys\n" + start.replace('"path/or/repo"', "sys.argv[1]") + AFTERWARDS)
    model = next(fresh.parent.parent.glob("lib/python*/site-packages/diffusers_oneflow/demo/model"))
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")}
    environment = {**kept, "PATH": str(fresh.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([fresh, "start.py", model], cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{diffusers_oneflow.__version__} (128, 128) 0"
    command = [fresh.parent / "diffusers-oneflow", "--version"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment).stdout
    assert said == f"{diffusers_oneflow.__version__}\n"


def test_installed_metadata_announces_the_entry_points():
    points = {(p.group, p.name) for p in metadata.distribution("diffusers_oneflow").entry_points}
    assert {
        ("console_scripts", "diffusers-oneflow"), ("torch.backends", "diffusers_oneflow"),
        ("torch_dynamo_backends", "oneflow"), ("diffusers.backends", "oneflow"),
    } <= points  # fmt: skip


# Without the native parts, which take minutes.
SETUP = """
import setuptools
stock = setuptools.setup
setuptools.setup = lambda **options: stock(**{**options, "ext_modules": []})
exec(open("setup.py").read())
"""


@pytest.mark.parametrize("command", ["bdist_wheel", "editable_wheel"])
def test_the_hook_of_mock_torch_goes_beside_the_packages(tmp_path, command):
    """Into the root of wheels, which becomes site-packages; that of ``pip install -e`` too."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "diffusers_oneflow_mock.pth"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "diffusers_oneflow").mkdir()
    (tmp_path / "diffusers_oneflow/__init__.py").write_text('__version__ = "0.1.0"\n')
    subprocess.run([sys.executable, "-c", SETUP, "-q", command, "-d", "dist"], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert packed.read("diffusers_oneflow_mock.pth") == (ROOT / "diffusers_oneflow_mock.pth").read_bytes()
