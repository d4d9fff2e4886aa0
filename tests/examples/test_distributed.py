"""examples/distributed.py under accelerate launch, with two processes."""

import os
import re
import subprocess
import sys

import batch
import pytest
from typer.testing import CliRunner

PROMPTS = ["a red circle", "a blue star", "a pink heart", "a white ring", "a green cross", "a red ring"]


@pytest.fixture
def run(examples, model, tmp_path):
    """run(folder, backend, *options of accelerate launch): draw the prompts, in batches of 2."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "clean").mkdir()

    def run(folder, backend, *options) -> subprocess.CompletedProcess:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", 0, *options]
        words = [*launcher, examples / "distributed.py", *arguments(tmp_path, folder, backend)]
        # The machine's own file of accelerate's settings does not count.
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
        return subprocess.run(
            list(map(str, words)), cwd=tmp_path / "clean", env=environment, capture_output=True, text=True, timeout=300
        )

    return run


def arguments(folder, name, backend) -> list[str]:
    given = [folder / "prompts.txt", "--out", folder / name, "--model", folder / "model", "--backend", backend]
    return [*map(str, given), "--batch", "2", "--steps", "2"]


def content(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def shares(done) -> dict[str, list[int]]:
    """Process -> the numbers of the lines that it says it drew."""
    said = re.findall(r"process (\d of \d) on cpu\S* drew lines: (.*)", done.stdout)
    return {process: [int(number) for number in re.findall(r"\d+", numbers)] for process, numbers in said}


def test_two_processes_draw_every_line_once_and_what_one_draws(run, tmp_path):
    alone = CliRunner().invoke(batch.app, arguments(tmp_path, "alone", "oneflow"))
    assert alone.exit_code == 0, alone.output
    done = run("shared", "oneflow", "--multi_gpu", "--num_processes", 2)
    assert done.returncode == 0, done.stderr
    assert shares(done) == {"0 of 2": [1, 2, 3, 4], "1 of 2": [5, 6]}
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


def test_one_process_on_a_cpu_draws_what_is_left(run, tmp_path):
    """With --cpu, accelerate starts one process, whatever it is asked for; the script says so."""
    assert CliRunner().invoke(batch.app, arguments(tmp_path, "out", "torch")).exit_code == 0
    whole = content(tmp_path / "out")
    (tmp_path / "out/000004.png").unlink()
    done = run("out", "torch", "--cpu", "--num_processes", 2)
    assert done.returncode == 0, done.stderr
    assert shares(done) == {"0 of 1": [3, 4]} and "started one process only" in done.stderr
    assert content(tmp_path / "out") == whole
