"""Whether OneFlow can run here, said in one sentence; and that a broken one breaks nothing else."""

import importlib.util
import os
import subprocess
import sys

import pytest

from diffusers_oneflow import engine


def test_it_runs_here():
    assert engine.refusal() is None
    assert engine.load().__version__ == engine.VERSION
    assert engine.load() is engine.flow()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.setattr(sys, "version_info", (3, 12, 1, "final", 0)), "this is Python 3.12: use a Python 3.10 environment"),
        (lambda m: m.setattr(sys, "platform", "darwin"), "for Linux only, and this is darwin"),
        (lambda m: m.setattr(importlib.util, "find_spec", lambda name: None), "pip install oneflow==0.9.0"),
        (
            lambda m: m.setattr(importlib.util, "find_spec", lambda name: None if "_native" in name else name),
            "the native runtime of diffusers_oneflow was not built",
        ),
    ],
)
def test_each_reason_is_one_sentence(monkeypatch, change, says):
    change(monkeypatch)
    reason = engine.refusal()
    monkeypatch.undo()
    assert says in reason
    assert "\n" not in reason


def test_quiet_keeps_the_noise_of_libraries_and_its_last_line(capfd):
    with engine.quiet() as said:
        os.write(2, b"first\nlast\n")
        assert said() == "last"
    os.write(2, b"afterwards\n")
    said = capfd.readouterr().err
    assert "afterwards\n" in said and "first" not in said and "last" not in said


@pytest.fixture
def broken(tmp_path):
    """Runs code in a process whose oneflow raises when it is imported."""
    (tmp_path / "oneflow.py").write_text("raise ImportError('libcublas.so.11 is missing')")
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))

    def run(code):
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    return run


def test_a_broken_oneflow_breaks_neither_torch_nor_diffusers(broken):
    done = broken("import torch, diffusers; from diffusers import DiffusionPipeline; print('fine')")
    assert done.stdout.strip() == "fine"
    assert done.stderr == ""


def test_a_broken_oneflow_is_reported_when_it_is_asked_for(broken):
    done = broken("import torch, diffusers_oneflow; diffusers_oneflow.compile(torch.nn.Linear(2, 2))")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "EngineUnavailable" in last
    assert "does not load: libcublas.so.11 is missing" in last


def test_it_joins_no_job_that_a_launcher_has_started_for_torch():
    """Launched as one of two, whose other never comes; and nothing in the environment is left changed."""
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "LOCAL_RANK"} | launched
    code = (
        "import os; before = dict(os.environ)\n"
        "from diffusers_oneflow import engine\n"
        "flow = engine.load()\n"
        "changed = {k for k in {*before, *os.environ} if k[:4] != 'GLOG' and before.get(k) != os.environ.get(k)}\n"
        "print(flow.env.get_world_size(), changed, flow.ones(2).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[0] == "1 set() 2.0", done.stderr
