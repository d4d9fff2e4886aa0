"""Takes the steps of a Dockerfile in plain folders, for want of an engine that builds images.

A stage is a folder, and absolute paths of its steps are paths below that. Commands run as they are written, in a shell, with
other programs in the place of these, so that nothing is downloaded or changed outside the folders:

- ``pip install`` checks that all that is asked for is installed in these versions; of wheels it then installs the files;
- ``pip wheel`` builds, without compiling what the working copy has compiled;
- ``apt-get install`` simulates, where there are lists of packages;
- ``useradd`` makes the home; ``python3`` is the Python of the tests.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path

_PIP = """
import os, shutil, subprocess, sys, sysconfig
from pathlib import Path

def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)

root, (command, *rest) = Path(os.environ["STEPS_ROOT"]), sys.argv[1:]
if command == "install":
    pip(command, "--dry-run", "--no-index", *rest)
    if wheels := [name for name in rest if name.endswith(".whl")]:
        pip(command, "-q", "--no-index", "--no-deps", "--target", str(root / "site"), *wheels)
else:
    context = Path(os.environ["STEPS_CONTEXT"])
    built = Path("build", f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
    for file in context.glob("diffusers_oneflow/**/*.so"):
        (built / file.relative_to(context)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, built / file.relative_to(context))
    pip(command, *rest)
"""
_APT = """#!/bin/sh
if [ "$1" = install ] && ls /var/lib/apt/lists/*Packages* > /dev/null 2>&1; then exec /usr/bin/apt-get --simulate "$@"; fi
"""
_USERADD = """#!/bin/sh
for name; do :; done
mkdir -p "$STEPS_ROOT/home/$name"
"""


def steps(dockerfile: Path) -> list[tuple[str, str]]:
    """The steps of a Dockerfile: what is done (``RUN``), and with what."""
    lines = re.sub(r"\\\n\s*", "", dockerfile.read_text()).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def build(context: Path, where: Path, **arguments: str) -> "Stage":
    """The last stage of the Dockerfile in `context`, made below `where`; `arguments` as with ``--build-arg``.

    Raises:
        CalledProcessError: a command failed.
    """
    tools = where / "tools"
    tools.mkdir()
    programs = {"apt-get": _APT, "useradd": _USERADD, "pip": f"#!{sys.executable}{_PIP}"}
    programs["python3"] = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    stages, stage, outside = {}, None, {}
    for step, rest in steps(context / "Dockerfile"):
        if step == "ARG":
            name, _, default = rest.partition("=")
            (outside if stage is None else stage.variables)[name] = arguments.get(name, default)
        elif step == "FROM":
            base, _, name = string.Template(rest).substitute(outside).partition(" AS ")
            stage = stages[name] = Stage(where / name, context, stages.get(base), stages)
        else:
            getattr(stage, step.lower())(rest)
    return stage


class Stage:
    """One stage: a folder, variables, and what is started in it; a stage on another one goes on in its folder."""

    def __init__(self, root: Path, context: Path, base: "Stage | None", stages: dict):
        self._stages, self._context = stages, context
        self.root = root if base is None else base.root
        self.root.mkdir(exist_ok=True)
        self.variables: dict[str, str] = {} if base is None else dict(base.variables)
        self.folder, self.command = (self.root, []) if base is None else (base.folder, base.command)
        self.said: list[str] = [] if base is None else base.said

    def copy(self, rest: str):
        """From the context, without what .dockerignore names, or from another stage."""
        *sources, target = rest.split()
        if sources[0].startswith("--from="):
            origin = self._stages[sources.pop(0).removeprefix("--from=")]
            files = [origin.path(name) for name in sources]
        else:
            files = [self._context / name for name in sources]
        for file in files:
            if file.is_dir():
                shutil.copytree(file, self.path(target), ignore=self._ignored, dirs_exist_ok=True)
                continue
            to = self.path(target) / file.name if target.endswith("/") else self.path(target)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to)

    def run(self, rest: str):
        """A command line."""
        self.said.append(
            self._call(["sh", "-c", re.sub(r"""(^|[\s"'=])/(?=\w)""", rf"\1{self.root}/", rest)], self.folder).stdout
        )

    def env(self, rest: str):
        """Variables."""
        self.variables.update(pair.split("=", 1) for pair in shlex.split(rest))

    def workdir(self, rest: str):
        """The folder for what follows."""
        self.folder = self.path(rest)
        self.folder.mkdir(parents=True, exist_ok=True)

    def user(self, rest: str):
        """Of no effect here."""

    def cmd(self, rest: str):
        """What is started."""
        self.command = json.loads(rest)

    def start(
        self, command: list[str] | None = None, folder: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess:
        """Run the image's command or another one, in its folder or another one."""
        words = [str(self.path(word)) if word.startswith("/") else word for word in command or self.command]
        return self._call(words, folder or self.folder, **variables)

    def path(self, name: str) -> Path:
        """Where an absolute path of the image is, or a path in its folder."""
        return self.root / name[1:] if name.startswith("/") else self.folder / name

    def _ignored(self, folder: str, names: list[str]) -> set[str]:
        rules = (self._context / ".dockerignore").read_text().split()
        hidden = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
        return {name for name in names if any(fnmatch.fnmatch(name, rule) for rule in hidden)}

    def _call(self, words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
        tools, site = self.root.parent / "tools", self.root / "site"
        own = {
            "PATH": f"{tools}:{site / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(site), "STEPS_ROOT": str(self.root),
            "STEPS_CONTEXT": str(self._context),
        }  # fmt: skip
        home = {"HOME": str(self.path(self.variables["HOME"]))} if "HOME" in self.variables else {}
        environment = {**os.environ, **self.variables, **own, **home, **variables}
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=600)
