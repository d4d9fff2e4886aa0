"""Kernels of flash attention 4 and quack compiled in another process; packages that write a file stand for these."""

import ast
import os
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from diffusers_oneflow.replay.cuda import cute_ahead, flash, quack

_GPU = torch.device("cuda", 0)
_FLASH = """
import ast
import os
from pathlib import Path
folder = Path(os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"])

def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
    if q.shape[-1] == 24:
        os.abort()
    if q.shape[-1] == 16:
        raise RuntimeError("no such heads")
    folder.mkdir(parents=True, exist_ok=True)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    target = [os.environ.get(n) for n in ("CUTE_DSL_ARCH", "FLASH_ATTENTION_ARCH", "QUACK_ARCH", "FLASH_ATTENTION_NUM_SMS")]
    said = [tuple(q.shape), k.stride(), str(v.dtype), str(q.device), softmax_scale, causal, seen]
    (folder / str(q.shape[-1])).write_text(repr((*said, *target)))
    return q
"""
_QUACK = {
    "__init__.py": "", "epilogue/__init__.py": "", "activation.py": "gate_fn_map = {}\ngelu_erf = abs\n",
    "gemm_config.py": "def GemmConfig(**how):\n    return how['tile_n']\n",
    "epilogue/library.py": """
import ast
import os
from pathlib import Path

def linear_act_mod(name, gated, **ends):
    def run(a, b, c, config, out, **rest):
        folder = Path(os.environ["QUACK_CACHE_DIR"])
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
    monkeypatch.setenv("DIFFUSERS_ONEFLOW_CACHE", str(tmp_path / "cache"))
    properties = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(cute_ahead, "_CORES", 1)
    monkeypatch.setattr(cute_ahead, "_compilers", {})
    cute_ahead._variables.cache_clear()
    yield tmp_path / "cache"
    for compiler in cute_ahead._compilers.values():
        compiler._end()
    cute_ahead._variables.cache_clear()
    flash.function.cache_clear()
    quack.epilogue.cache_clear()
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
    found = []
    with cute_ahead._deferring(_GPU) as is_left:
        for call in calls:

            def one(call=call):
                with pytest.raises(cute_ahead.Deferred):
                    call()

            found.append(is_left(one))
    return found


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
    said = ((2, 64, 8, 40), (61440, 960, 40, 1), "torch.float16", "cuda:0", 0.5, False, "")
    assert ast.literal_eval((installed / "flash-attn-4" / "40").read_text()) == (*said, "sm_90a", "sm_90", "90", "132")
    assert sorted(p.name for p in (installed / "flash-attn-4").iterdir()) == ["40"]
    kept = sorted((installed / "quack-kernels").iterdir())
    assert [p.name for p in kept] == ["diffusers_oneflow_gelu-128", "diffusers_oneflow_gelu-160"]
    assert ast.literal_eval(kept[0].read_text())[:2] == ((32, 16), (16, 128)) and "mRowVecBroadcast" in kept[0].read_text()
    # It is there for the next graph, which asks for one more.
    cute_ahead.start(_GPU)
    assert cute_ahead._compilers[_GPU] is first and asked(lambda: attend(80), lambda: attend(40)) == [True] * 2
    cute_ahead._compilers[_GPU].wait()
    assert (installed / "flash-attn-4" / "80").exists()


def test_a_run_without_them_is_made_while_they_are_compiled(installed):
    cute_ahead.start(_GPU)
    order = []

    def run():
        order.append("run")
        attend(48)
        order.append("launched")

    def load():
        order.append("load")

    assert cute_ahead.ask(_GPU, [run, lambda: order.append("plain")]) and order == ["run", "plain"]
    assert not cute_ahead.ask(_GPU, [lambda: None])
    cute_ahead.twice(_GPU, run, load)
    assert order == ["run", "plain", "run", "load", "run", "launched"] and (installed / "flash-attn-4" / "48").exists()
    order.clear()
    cute_ahead.twice(_GPU, lambda: order.append("plain"), load)
    assert order == ["plain"]
    cute_ahead._compilers.clear()
    order.clear()
    assert not cute_ahead.ask(_GPU, [run])  # without a process
    cute_ahead.twice(_GPU, run, load)
    assert order == ["run", "launched"] * 2


def test_nothing_is_asked_for_outside_and_by_other_threads(installed, monkeypatch):
    (installed.parent / "worker.py").write_text("import time\ntime.sleep(100)")
    monkeypatch.setattr(cute_ahead, "_WORKER", installed.parent / "worker.py")
    cute_ahead.start(_GPU)
    seen = []

    def other():
        cute_ahead.defer("kind", "flash.attention")
        seen.append(True)

    with cute_ahead._deferring(_GPU) as is_left:
        assert not is_left(lambda: None)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    with cute_ahead._deferring(torch.device("cuda", 1)) as is_left:  # for which nothing was started
        assert not is_left(other)
    assert len(seen) == 3 and not cute_ahead._compilers[_GPU]._asked


@pytest.mark.parametrize("worker", ["raise SystemExit(3)", "import time\ntime.sleep(100)"])
def test_who_does_not_answer_is_not_waited_for(installed, monkeypatch, worker):
    (installed.parent / "worker.py").write_text(worker)
    monkeypatch.setattr(cute_ahead, "_WORKER", installed.parent / "worker.py")
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


def test_where_nothing_is_kept_they_have_a_folder_until_the_process_ends(installed, monkeypatch):
    monkeypatch.setenv("DIFFUSERS_ONEFLOW_CACHE", "off")
    cute_ahead._variables.cache_clear()
    folder = Path(cute_ahead._variables()["QUACK_CACHE_DIR"]).parent
    assert folder.is_dir() and installed not in folder.parents
    folder.rmdir()
