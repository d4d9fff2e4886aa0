"""Kernels compiled in processes, for a GPU that is not there: Triton is told of one, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch")

_HEAD = """
import json, threading, time
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from diffusers_oneflow.replay.cuda import ahead, chains, light

class Gpu:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

driver.set_active(Gpu())
ahead._PATIENCE = 250
x, out = torch.randn(64, 128).half(), torch.empty(64, 128).half()
chain = chains.Chain((64, 128), [(64, 128), (128,)], [(128, 1), (1,)], [("add", 0, 1, 0.0), ("act", 2, 2, "silu")])
launches = [
    lambda: light.finish(out, x, None, None, "silu", False), lambda: chain(out, x, x[0]),
    lambda: light.gate(out[:, :64].contiguous(), x, "gelu"), lambda: light.finish(out, x, x[0], x, "none", False),
]

def launch():
    # Compiled or found on disk; then there is no GPU to run on.
    found = []
    knobs.compilation.listener = lambda **said: found.append(said["cache_hit"])
    for one in launches:
        try:
            one()
        except AttributeError as error:
            assert "launcher" in str(error)
    return found

def say(**said):
    print("SAID", json.dumps(said))
"""


def run(text, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", _HEAD + text], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (said,) = [line.removeprefix("SAID ") for line in done.stdout.splitlines() if line.startswith("SAID ")]
    return json.loads(said)


def test_what_processes_compiled_is_found_on_disk(tmp_path):
    said = run(
        "before = ahead.collect(launches); ahead.compile_ahead(launches)()\nsay(asked=len(before), found=launch())", tmp_path
    )
    assert said == {"asked": 4, "found": [True] * 4}


@pytest.mark.parametrize("worker", ["raise SystemExit(3)", "import time\ntime.sleep(200)"])
def test_what_they_did_not_compile_is_compiled_here(tmp_path, worker):
    (tmp_path / "worker.py").write_text(worker)
    text = f"""
from pathlib import Path
ahead._WORKER, ahead._PATIENCE = Path({str(tmp_path / "worker.py")!r}), 0.5
start = time.perf_counter()
ahead.compile_ahead(launches)()
say(took=time.perf_counter() - start, found=launch())
"""
    said = run(text, tmp_path)
    assert said["found"] == [False] * 4 and said["took"] < 100


@pytest.mark.parametrize("text", ["sys.path.append(Path('/nowhere'))", "sys.executable = None", "sys.frozen = True"])
def test_odd_interpreters_compile_here_or_there(tmp_path, text):
    said = run(f"import sys\nfrom pathlib import Path\n{text}\nahead.compile_ahead(launches)()\nsay(found=launch())", tmp_path)
    assert len(said["found"]) == 4 and all(said["found"]) == ("path" in text)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one core there are no processes")
def test_many_kernels_and_workers_that_do_not_listen_stop_nobody(tmp_path):
    (tmp_path / "worker.py").write_text("import time\ntime.sleep(200)")
    text = f"""
from pathlib import Path
ahead._WORKER, ahead._PATIENCE = Path({str(tmp_path / "worker.py")!r}), 1.0
ahead.collect = lambda launches: {{str(i): {{"name": "x" * 4000}} for i in range(400)}}
start = time.perf_counter()
wait = ahead.compile_ahead([])
started = time.perf_counter() - start
wait()
say(started=started, waited=time.perf_counter() - start - started)
"""
    said = run(text, tmp_path)
    assert said["started"] < 60 and 0.5 < said["waited"] < 100


def test_a_hook_that_somebody_puts_back_lets_kernels_run(tmp_path):
    text = """
kept = []
def other():
    kept.append(knobs.runtime.jit_cache_hook)
ahead.collect([other])
knobs.runtime.jit_cache_hook = kept[0]
say(found=launch())
"""
    assert run(text, tmp_path)["found"] == [False] * 4


def test_few_kernels_start_no_process(tmp_path):
    text = "ahead._start = None\nahead.compile_ahead(launches[:2])()\nsay(found=launch())"
    assert run(text, tmp_path)["found"] == [False] * 4


def test_who_launches_meanwhile_in_another_thread_is_not_stopped(tmp_path):
    text = """
seen = []
def other():
    try:
        launches[0]()
    except AttributeError as error:
        seen.append(str(error))
def both():
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    launches[2]()
asked = ahead.collect([both])
say(seen=len(seen), asked=[kernel["name"] for kernel in asked.values()], hook=knobs.runtime.jit_cache_hook is None)
"""
    assert run(text, tmp_path) == {"seen": 1, "asked": ["gated_kernel"], "hook": True}
