"""Kernels of flash attention 4 and quack compiled in another process; packages that write a file stand for these."""

import ast
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
import types
import warnings

import pytest
import torch

from diffusers_oneflow.replay import nvidia
from diffusers_oneflow.replay.cuda import cute_ahead, flash, quack

_GPU = torch.device("cuda", 0)
_FLASH = """
import gc
import os
import time
from pathlib import Path
import torch
# No function is wrapped for torch.compile, which would be imported.
spared = torch.compile(len, dynamic=False) is torch.compiler.disable(len) is torch.compiler.disable(recursive=False)(len) is len
folder = Path(os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"])

def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
    if q.shape[-1] == 24:
        os.kill(os.getpid(), 9)
    if q.shape[-1] == 32:
        time.sleep(600)
    print("who compiles has much to say", flush=True)
    if q.shape[-1] == 16:
        raise RuntimeError("no such heads")
    folder.mkdir(parents=True, exist_ok=True)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    target = [os.environ.get(n) for n in ("CUTE_DSL_ARCH", "FLASH_ATTENTION_ARCH", "QUACK_ARCH", "FLASH_ATTENTION_NUM_SMS")]
    said = [tuple(q.shape), k.stride(), str(v.dtype), str(q.device), softmax_scale, causal, seen]
    said.append(spared and not gc.isenabled())
    (folder / str(q.shape[-1])).write_text(repr((*said, *target)))
    return q
"""
_QUACK = {
    "__init__.py": "", "epilogue/__init__.py": "", "activation.py": "gate_fn_map = {}\ngelu_erf = abs\n",
    "gemm_config.py": "def GemmConfig(**how):\n    return how['tile_n']\n",
    "epilogue/library.py": """
import os
from pathlib import Path
folder = Path(os.environ["QUACK_CACHE_DIR"])

def linear_act_mod(name, gated, **ends):
    def run(a, b, c, config, out, **rest):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{config}").write_text(repr((tuple(a.shape), tuple(b.shape), sorted(rest))))
        raise RuntimeError("there is no GPU")
    return run
""",
}  # fmt: skip


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Both packages, a GPU and cores enough; the folder that the caches are in."""
    for name, text in {
        "flash_attn/__init__.py": "",
        "flash_attn/cute.py": _FLASH,
        **{f"quack/{n}": t for n, t in _QUACK.items()},
    }.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in [n for n in sys.modules if n.split(".")[0] in ("flash_attn", "quack")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in os.environ if n.startswith(("FLASH_ATTENTION_", "QUACK_", "CUTE_DSL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("DIFFUSERS_ONEFLOW_CACHE", raising=False)
    properties = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(cute_ahead, "_CORES", 1)
    monkeypatch.setattr(cute_ahead, "_PATIENCE", 600.0)  # a busy machine takes long to import torch
    monkeypatch.setattr(cute_ahead, "_compilers", {})
    monkeypatch.setattr(cute_ahead, "_there", set())
    monkeypatch.setattr(quack, "failed", set())
    found = (cute_ahead._folder, flash.function, quack.epilogue)
    for function in found:
        function.cache_clear()
    yield tmp_path / "user" / "diffusers_oneflow" / "kernels"
    for compiler in cute_ahead._compilers.values():
        compiler.end()
    for function in found:
        function.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] in ("flash_attn", "quack")]:
        del sys.modules[name]


def attend(width, rows=64, causal=False):
    """As q, k, v of one product are read: rows lie apart."""
    q, k, v = torch.empty(2, rows, 3, 8, width, dtype=torch.float16, device="meta").unbind(2)
    flash.attention(q, k, v, causal, 0.5)


def gate(number, rows=32):
    def empty(*size):
        return torch.empty(size, dtype=torch.bfloat16, device="meta")

    quack.multiply(number, "gelu", empty(rows, 64), empty(rows, 16), empty(128, 16), torch.empty(128, device="meta"))


def asked(*calls):
    """Which of `calls` were left to the other process."""
    return [bool(cute_ahead.ask(_GPU, [call])) for call in calls]


def test_another_process_compiles_what_was_asked_for(installed):
    cute_ahead.start(_GPU)
    first = cute_ahead._compilers[_GPU]
    calls = [
        lambda: attend(40),
        lambda: attend(40, rows=32),
        lambda: attend(16),
        lambda: attend(24),
        lambda: gate(0),
        lambda: gate(1),
    ]
    assert asked(*calls) == [True] * 6
    cute_ahead._compilers[_GPU].wait()
    assert first._answers == 5  # those of one kind are one kernel; what fails and what ends is answered, too
    said = ((2, 64, 8, 40), (61440, 960, 40, 1), "torch.float16", "cuda:0", 0.5, False, "", True)
    assert ast.literal_eval((installed / "flash-attn-4" / "40").read_text()) == (*said, "sm_90a", "sm_90", "90", "132")
    assert sorted(p.name for p in (installed / "flash-attn-4").iterdir()) == ["40"]
    kept = sorted((installed / "quack-kernels").iterdir())
    assert [p.name for p in kept] == ["diffusers_oneflow_gelu_erf-128", "diffusers_oneflow_gelu_erf-160"]
    assert ast.literal_eval(kept[0].read_text())[:2] == ((32, 16), (16, 128)) and "mRowVecBroadcast" in kept[0].read_text()
    # It is there for the next graph, which asks for one more; what was compiled is here.
    cute_ahead.start(_GPU)
    assert cute_ahead._compilers[_GPU] is first and asked(lambda: attend(80), lambda: attend(40)) == [True, False]
    first.wait()
    assert (installed / "flash-attn-4" / "80").exists()
    # Also where there is another process.
    first.end()
    assert not first.lives() and first._to.closed and first._from.closed
    cute_ahead.start(_GPU)
    assert cute_ahead._compilers[_GPU].lives() and asked(lambda: attend(80)) == [False]


def test_a_run_without_them_is_made_while_they_are_compiled(installed):
    cute_ahead.start(_GPU)
    order = []

    def run():
        order.append("run")
        attend(48)
        order.append("launched")

    def load(asked):
        order.append(asked)

    assert cute_ahead.ask(_GPU, [run, lambda: order.append("plain")]) and order == ["run", "plain"]
    assert not cute_ahead.ask(_GPU, [lambda: None])
    assert cute_ahead.ask(_GPU, [lambda: attend(48)] * 2, order.append) and order[2:] == ["flash.attention"]  # told once
    order.pop()
    cute_ahead.twice(_GPU, run, load)
    assert (
        order == ["run", "plain", "run", {"flash.attention"}, "run", "launched"] and (installed / "flash-attn-4" / "48").exists()
    )
    order.clear()
    cute_ahead.twice(_GPU, lambda: order.append("plain"), load)
    assert order == ["plain"]
    cute_ahead._compilers.clear()
    order.clear()
    assert not cute_ahead.ask(_GPU, [run])  # without a process
    cute_ahead.twice(_GPU, run, load)
    assert order == ["run", "launched"] * 2


def test_the_next_process_does_not_ask_again(installed, monkeypatch):
    def next_process():
        cute_ahead._compilers.pop(_GPU).end()
        cute_ahead._there.clear()
        cute_ahead.start(_GPU)

    cute_ahead.start(_GPU)
    assert asked(lambda: attend(40), lambda: gate(0)) == [True, True]
    cute_ahead._compilers[_GPU].wait()
    next_process()
    assert asked(lambda: attend(40), lambda: attend(80)) == [False, True]
    cute_ahead._compilers[_GPU].wait()
    next_process()
    # Before anything is computed it is found out what to import for those that are there.
    told = []
    assert cute_ahead.ask(_GPU, [lambda: attend(40)] * 2, told.append) == {"flash.attention"} and told == ["flash.attention"]
    assert not cute_ahead._compilers[_GPU]._asked and not cute_ahead._there
    assert asked(lambda: attend(40), lambda: attend(80)) == [False, False]
    with pytest.raises(RuntimeError, match="no GPU"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked(lambda: gate(0))  # it is not left to the other process
    # Of another version of a package there is none.
    monkeypatch.setattr(cute_ahead, "version", {"quack-kernels": "1000"}.get)
    next_process()
    assert asked(lambda: attend(40)) == [True]
    (record,) = [path for path in installed.glob("*.json") if path != cute_ahead._compilers[_GPU]._record]
    record.write_text("{")
    assert cute_ahead._kept(record) == set()


def test_nothing_is_asked_for_outside_and_by_other_threads(installed, monkeypatch):
    (path := installed.parents[2] / "worker.py").write_text("import time\ntime.sleep(100)")
    monkeypatch.setattr(cute_ahead, "_WORKER", path)
    cute_ahead.start(_GPU)
    seen = []

    def other(number):
        cute_ahead.defer(number, "flash.attention")
        seen.append(number)

    def inside():
        thread = threading.Thread(target=other, args=(0,))
        thread.start()
        thread.join()

    assert not cute_ahead.ask(_GPU, [inside])
    other(1)
    assert not cute_ahead.ask(torch.device("cuda", 1), [lambda: other(2)])  # for which nothing was started
    assert seen == [0, 1, 2] and not cute_ahead._compilers[_GPU]._asked
    # What is compiled here is not asked for later.
    assert not cute_ahead.ask(_GPU, [lambda: other(2)]) and cute_ahead.ask(_GPU, [lambda: other(3)]) and seen == [0, 1, 2, 2]


def test_it_ends_with_what_it_compiles(installed, monkeypatch):
    cute_ahead.start(_GPU)
    compiler = cute_ahead._compilers[_GPU]
    assert asked(lambda: attend(40), lambda: attend(32)) == [True, True]  # the latter takes ten minutes
    while not (installed / "flash-attn-4" / "40").exists():
        assert compiler.lives()
        time.sleep(0.05)
    monkeypatch.setattr(cute_ahead, "_PATIENCE", 0.5)
    started = time.monotonic()
    compiler.wait()
    assert time.monotonic() - started < 20 and not compiler.lives()
    with pytest.raises(ProcessLookupError):
        for _ in range(2000):  # until what it forked is gone, too
            os.killpg(compiler._process.pid, 0)
            time.sleep(0.05)
    cute_ahead.start(_GPU)
    assert cute_ahead._compilers[_GPU] is not compiler and cute_ahead._compilers[_GPU].lives()


@pytest.mark.parametrize("worker", ["raise SystemExit(3)", "import time\ntime.sleep(100)"])
def test_who_does_not_answer_is_not_waited_for(installed, monkeypatch, worker):
    (path := installed.parents[2] / "worker.py").write_text(worker)
    monkeypatch.setattr(cute_ahead, "_WORKER", path)
    monkeypatch.setattr(cute_ahead, "_PATIENCE", 0.5)
    cute_ahead.start(_GPU)
    started = time.monotonic()
    many = [cute_ahead._compilers[_GPU].ask(number, "flash.attention", ("x" * 400,)) for number in range(1000)]
    assert not all(many)  # the pipe is full, or closed
    assert not cute_ahead._compilers[_GPU].ask("large", "flash.attention", ("x" * 5000,))
    cute_ahead._compilers[_GPU].wait()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("why", ["few cores", "frozen", "no caches", "flash imported", "quack imported"])
def test_where_it_would_not_help_no_process_is_started(installed, monkeypatch, why):
    if why == "few cores":
        monkeypatch.setattr(cute_ahead, "_CORES", 1000)
    elif why == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif why == "no caches":
        monkeypatch.setenv("QUACK_CACHE_ENABLED", "0")
    else:  # by their user, with caches elsewhere
        name = "flash_attn.cute.cache_utils" if why.startswith("flash") else "quack.cache"
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(CACHE_DIR=None, CUTE_DSL_CACHE_DIR=None))
    cute_ahead.start(_GPU)
    assert not cute_ahead._compilers


def test_packages_are_imported_with_caches_unless_their_user_has_others(installed, monkeypatch, tmp_path):
    monkeypatch.setenv("QUACK_CACHE_DIR", str(tmp_path / "own"))
    with cute_ahead.caches():
        assert os.environ["QUACK_CACHE_DIR"] == str(tmp_path / "own")
        assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"] == "1"
        assert os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == str(installed / "flash-attn-4")
        # What was imported so finds what is compiled elsewhere.
        kept = types.SimpleNamespace(CACHE_DIR=os.environ["QUACK_CACHE_DIR"])
    assert "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR" not in os.environ and os.environ["QUACK_CACHE_DIR"] == str(tmp_path / "own")
    monkeypatch.setitem(sys.modules, "quack.cache", kept)
    assert cute_ahead._shares()


def test_caches_stay_until_all_threads_have_imported(installed):
    name, seen, inside, go = "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", [], threading.Event(), threading.Event()

    def load():
        with cute_ahead.caches():
            inside.set()
            assert go.wait(60)
            seen.append(os.environ.get(name))

    thread = threading.Thread(target=load)
    with cute_ahead.caches():
        thread.start()
        assert inside.wait(60)
    seen.append(os.environ.get(name))  # who set it has left
    go.set()
    thread.join()
    assert seen == [str(installed / "flash-attn-4")] * 2 and name not in os.environ


def test_packages_are_imported_by_one_thread_at_a_time(installed):
    busy, count = threading.Lock(), []

    def load():
        with cute_ahead.importing():
            assert busy.acquire(blocking=False)
            time.sleep(0.01)
            count.append(os.environ["QUACK_CACHE_DIR"])
            busy.release()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [str(installed / "quack-kernels")] * 4


@pytest.mark.parametrize("why", ["nothing is kept", "nobody may write there", "files cannot be locked"])
def test_elsewhere_they_have_a_folder_until_the_process_ends(installed, monkeypatch, tmp_path, why):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where no other test makes folders
    monkeypatch.setattr(tempfile, "tempdir", None)
    if why == "nothing is kept":
        monkeypatch.setenv("DIFFUSERS_ONEFLOW_CACHE", "off")
    elif why == "nobody may write there":
        installed.parents[1].write_text("a file")
    else:
        monkeypatch.setattr(cute_ahead.fcntl, "flock", lambda *args: (_ for _ in ()).throw(OSError("no locks")))
    folder = cute_ahead._folder()
    assert folder.is_dir() and folder.stat().st_mode & 0o777 == 0o700 and installed != folder
    assert cute_ahead._variables()["QUACK_CACHE_DIR"] == str(folder / "quack-kernels")
    cute_ahead.start(_GPU)
    assert asked(lambda: attend(40)) == [True]
    cute_ahead._compilers[_GPU].wait()
    assert (folder / "flash-attn-4" / "40").exists()
    assert list(tmp_path.glob("diffusers_oneflow-*")) == [folder]  # the other process makes none of its own
    shutil.rmtree(folder)


def test_the_users_folder_is_for_the_user_alone(installed):
    assert cute_ahead._folder() == installed and installed.stat().st_mode & 0o777 == 0o700


def test_a_gpu_asks_and_imports_before_it_waits(installed, monkeypatch):
    pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(flash, "is_tried", lambda device: True)
    monkeypatch.setattr(cute_ahead, "installed", lambda package: True)
    called, thread = [], threading.get_ident()
    cute_ahead.start(_GPU)
    gpu = nvidia.Cuda(_GPU)
    loads = gpu._load
    monkeypatch.setattr(gpu, "_load", lambda asked: [called.append((*asked, threading.get_ident() == thread)), loads(asked)])

    def here():
        until = time.monotonic() + 60
        while ("flash.attention", False) not in called and time.monotonic() < until:  # in another thread, while this one compiles
            time.sleep(0.01)
        called.append(("here", threading.get_ident() == thread))

    gpu._prepare([lambda: called.append(("library",))], [lambda: attend(40), here], [])
    assert (
        sorted(called) == [("flash.attention", False), ("here", True), ("library",)]
        and len(cute_ahead._compilers[_GPU]._asked) == 1
    )
    # Imported with the caches that the other process has.
    assert sys.modules["flash_attn.cute"].folder == installed / "flash-attn-4" and "QUACK_CACHE_DIR" not in os.environ
    assert "quack.epilogue.library" not in sys.modules  # which no kernel needs so far
    gpu._prepare([], [lambda: gate(0)], [])
    assert "quack.epilogue.library" in sys.modules
    cute_ahead.twice(_GPU, lambda: attend(40), gpu._load)
    assert ast.literal_eval((installed / "flash-attn-4" / "40").read_text())[-1] is None  # written here, after there
