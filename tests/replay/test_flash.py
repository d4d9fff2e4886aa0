"""Flash attention 4 among the ways to compute attention; the package itself needs a GPU."""

import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from diffusers_oneflow.errors import Unsupported
from diffusers_oneflow.replay.cuda import attention, choice, cute_ahead, flash, quack


@pytest.fixture
def installed(monkeypatch):
    """A package that computes the same in float32, whose calls are kept, on a GPU of the right kind."""
    calls = []

    def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
        calls.append((tuple(q.shape), q.is_contiguous()))
        q, k, v = (t.transpose(1, 2).float() for t in (q, k, v))
        made = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
        return made.transpose(1, 2).to(torch.float16).contiguous(), None

    package = types.ModuleType("flash_attn.cute")
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", package)
    monkeypatch.setattr(flash, "able", lambda device: True)
    monkeypatch.setattr(flash, "_there", set())
    flash.function.cache_clear()
    yield calls
    flash.function.cache_clear()


def tensors(rows, keys, heads, width, dtype=torch.float16):
    torch.manual_seed(0)
    return [torch.randn(1, n, heads * width, dtype=dtype) for n in (rows, keys, keys)]


@pytest.mark.parametrize(("causal", "scale"), [(False, None), (True, None), (False, 0.3)])
def test_it_is_one_of_the_ways_for_long_sequences(installed, monkeypatch, causal, scale):
    monkeypatch.setattr(flash, "LEAST", 4.0 * 24 * 24 * 32)
    given = tensors(24, 24, 4, 8)
    ways = attention.Ways(4, causal, scale)._ways(*given, None)
    # After the likeliest, and never what is kept for where nothing else works.
    assert [name for _, name in ways].index("flash_attention_4") == min(1, len(ways) - 2)
    made = {name: run(*given, None).float() for run, name in ways}
    assert all((other - made["math"]).norm() <= 2e-3 * made["math"].norm() for other in made.values())
    assert installed == [((1, 24, 4, 8), True)]
    flash._there.clear()
    short = attention.Ways(4, causal, scale)._ways(*(t[:, :23] for t in given), None)
    assert "flash_attention_4" not in [name for _, name in short]


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"mask": True}, False), ({"dtype": torch.float32}, False), ({"width": 12}, False), ({"width": 264}, False),
     ({"causal": True}, True), ({"causal": True, "keys": 5000}, False), ({"keys": 5000}, True), ({"rows": 16}, False)],
)  # fmt: skip
def test_what_it_is_for(installed, change, fits):
    asked = {"rows": 4096, "keys": 4096, "width": 64, "dtype": torch.float16, "mask": False, "causal": False} | change
    q, k = (torch.empty(2, 10, n, asked["width"], dtype=asked["dtype"], device="meta") for n in (asked["rows"], asked["keys"]))
    assert flash.fits(q, k, torch.empty(1) if asked["mask"] else None, asked["causal"]) is fits


def test_where_it_is_not_installed_torch_has_the_rest(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    flash.function.cache_clear()
    try:
        assert flash.function() is None and not flash.usable(torch.device("cpu"))
        ways = attention.Ways(4, False, None)._ways(*tensors(4096, 4096, 4, 64), None)
        assert ways and "flash_attention_4" not in [name for _, name in ways]
    finally:
        flash.function.cache_clear()


def test_where_it_is_installed_and_broken_it_is_said_and_torch_has_the_rest(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    monkeypatch.setattr(flash, "is_tried", lambda device: True)
    monkeypatch.setattr(cute_ahead, "installed", {"flash-attn-4": True}.get)
    monkeypatch.setattr(flash, "LEAST", 1.0)
    monkeypatch.setattr(flash, "_there", set())
    flash.function.cache_clear()
    try:
        given = tensors(24, 24, 4, 8)
        ways = dict((name, run) for run, name in attention.Ways(4, False, None)._ways(*given, None))
        with pytest.warns(UserWarning, match="flash-attn-4 is installed and cannot be used, other kernels are: .*flash_attn"):
            error = choice._error((ways["flash_attention_4"], ""), (*given, None))
        assert isinstance(error, Unsupported)
        assert attention.Ways(4, False, None)(None, *given, None).shape == (1, 24, 32)
    finally:
        flash.function.cache_clear()


def test_smaller_ones_take_it_where_there_is_a_large_one_of_that_size(installed):
    def asked(rows, keys, width=64, dtype=torch.float16):
        return [torch.empty(2, 20, n, width, dtype=dtype, device="meta") for n in (rows, keys)]

    assert not flash.fits(*asked(1024, 77), None, False)
    assert flash.fits(*asked(4096, 4096), None, False)
    assert flash.fits(*asked(1024, 77), None, False)
    assert not flash.fits(*asked(1024, 77, width=40), None, False)
    assert not flash.fits(*asked(512, 512), None, True)
    assert not flash.fits(*asked(1024, 77, dtype=torch.bfloat16), None, False)


def test_quack_is_imported_after_it(tmp_path, monkeypatch):
    """It imports parts of quack: half done, those are taken for broken."""
    (tmp_path / "imports.py").write_text("busy, most = 0, 0\n")
    slow = "import time, imports\nimports.busy += 1\nimports.most = max(imports.most, imports.busy)\n"
    slow += "time.sleep(0.2)\nimports.busy -= 1\nflash_attn_func = linear_act_mod = lambda *args, **ends: args\n"
    for name in ("flash_attn/cute.py", "quack/epilogue/library.py", "quack/activation.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()  # else a package of that name that is installed comes first
        path.write_text(slow)
    (tmp_path / "quack" / "__init__.py").touch()
    for name in [n for n in sys.modules if n.split(".")[0] in ("flash_attn", "quack")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    flash.function.cache_clear()
    quack.epilogue.cache_clear()
    try:
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.submit(flash.function), pool.submit(quack.epilogue, "none", False)
            assert callable(first.result()) and second.result() == (None,)
        assert sys.modules["imports"].most == 1
    finally:
        flash.function.cache_clear()
        quack.epilogue.cache_clear()
        for name in [n for n in sys.modules if n.split(".")[0] in ("imports", "flash_attn", "quack")]:
            del sys.modules[name]
