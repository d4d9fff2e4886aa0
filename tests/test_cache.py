"""Programs on disk: what is found again, what is not, and what becomes of bad files."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, cache, serialize, stored_values
from diffusers_oneflow.backend import dispatcher_of
from diffusers_oneflow.cache import VARIABLE, Cache, directory
from diffusers_oneflow.cli import app
from diffusers_oneflow.errors import CacheWarning

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
KEY = "ab" * 32
pytestmark = pytest.mark.usefixtures("no_grad", "settled")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def run(module, folder, *args, **options):
    """Attach anew, as a new process would, and call; ``(result, where its program came from)``."""
    diffusers_oneflow.compile(module.eval(), OneFlowConfig(fallback="error", cache=folder, **options))
    made = module(*args)
    return made, dispatcher_of(module).entries[-1].origin


def check(module, folder, origin, *args, **options):
    made, found = run(module, folder, *args, **options)
    torch.testing.assert_close(made, module._call_impl(*args), **CLOSE)
    assert found == origin


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.factor = 2.0
        self.table = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x, power=1):
        return twice(self.inner(x)) * self.factor**power + self.table + SHIFT


def twice(x):
    return x * 2


SHIFT = 1.0


def test_a_second_time_nothing_is_exported(block, folder, monkeypatch):
    x = torch.randn(1, 3, 8, 8)
    check(block, folder, "captured", x)
    monkeypatch.setattr(torch.export, "export", None)
    check(block, folder, "disk cache", x)
    block[0].weight.mul_(2)
    check(block, folder, "disk cache", x)


_seen: list[str] | None = None


def _note(event, args):
    if _seen is not None and event == "pickle.find_class":
        _seen.append(event)


def test_no_pickle_is_loaded(block, folder, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "_seen", [])
    sys.addaudithook(_note)
    pickle.loads(pickle.dumps(OneFlowConfig()))
    assert _seen.pop()
    x = torch.randn(1, 3, 8, 8)
    check(block, folder, "captured", x)
    _seen.clear()
    check(block, folder, "disk cache", x)
    assert not _seen


def test_a_whole_unet_comes_back(unet, folder):
    args = (torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 5, 16))
    for origin in ("captured", "disk cache"):
        made, found = run(unet, folder, *args, hoist=True)
        torch.testing.assert_close(made.sample, unet._call_impl(*args).sample, **CLOSE)
        assert found == origin and type(made) is type(unet._call_impl(*args))
        part = dispatcher_of(unet).entries[-1]
        assert part.hoisted and any(r.applied for r in part.rewrites)


def test_explain_says_so(block, folder, capsys):
    for origin in ("captured", "disk cache"):
        run(block, folder, torch.randn(1, 3, 8, 8))
        report = diffusers_oneflow.explain(block)
        assert next(iter(report.values())).graphs[0].origin == origin
        assert f"program: {origin}" in capsys.readouterr().out


@pytest.mark.parametrize("kernels", ["native", "oneflow"])
def test_options_and_shapes_and_numbers_have_programs_of_their_own(block, folder, kernels):
    # What torch.export gave for one size is on disk as well, for others.
    for shape, first in (((1, 3, 8, 8), "captured"), ((1, 3, 6, 8), "captured anew for these sizes")):
        for origin in (first, "disk cache"):
            check(block, folder, origin, torch.randn(shape), kernels=kernels)
    module = Scaled()
    for power in (1, 2):
        for origin in ("captured", "disk cache"):
            check(module, folder, origin, torch.randn(2, 4), power)


def _other_factor(module, monkeypatch):
    module.factor = 3.0


def _other_table(module, monkeypatch):
    module.table[1] = 7.0


def _other_global(module, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SHIFT", 5.0)


def _other_helper(module, monkeypatch):
    monkeypatch.setattr(f"{__name__}.twice", lambda x: x * 3)


def _other_forward(module, monkeypatch):
    monkeypatch.setattr(Scaled, "forward", lambda self, x: self.inner(x))


def _other_inner_forward(module, monkeypatch):
    original = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: original(self, x) + 1)


def _other_layout(module, monkeypatch):
    module.inner.weight = torch.nn.Parameter(module.inner.weight.t().contiguous().t())


@pytest.mark.parametrize(
    "change",
    [_other_factor, _other_table, _other_global, _other_helper, _other_forward, _other_inner_forward, _other_layout],
)
def test_what_changes_the_result_changes_the_key(folder, monkeypatch, change):
    module, x = Scaled(), torch.randn(2, 4)
    check(module, folder, "captured", x)
    check(module, folder, "disk cache", x)
    change(module, monkeypatch)
    check(module, folder, "captured", x)


def test_a_file_that_changed_while_the_process_ran_is_not_trusted(block, folder, monkeypatch):
    monkeypatch.setattr("diffusers_oneflow.libraries.STARTED", 0.0)
    run(block, folder, torch.randn(1, 3, 8, 8))
    assert not folder.exists() and "was written to after" in dispatcher_of(block)._builder.programs.refusal


def test_what_cannot_be_compared_is_not_stored(folder):
    module = Scaled()
    module.source = itertools.count()
    check(module, folder, "captured", torch.randn(2, 4))
    assert not folder.exists() and "itertools.count" in dispatcher_of(module)._builder.programs.refusal


def _flip(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def _other_content(data):
    """Sound by length and digest, but no program."""
    import hashlib

    content = b"\x80\x04N."
    return data[: data.index(b"\n") + 65] + len(content).to_bytes(8, "little") + hashlib.sha256(content).digest() + content


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "length is wrong"),
        (lambda data: b"", "not written by this package"),
        (lambda data: b"\x80\x04N." + data, "not written by this package"),
        (_flip, "content is damaged"),
        (lambda data: data.replace(data[data.index(b"\n") + 1 :][:64], b"0" * 64, 1), "another name"),
        (_other_content, "Error"),
    ],
)
def test_a_bad_file_is_ignored_with_a_warning_and_replaced(block, folder, damage, said):
    x = torch.randn(1, 3, 8, 8)
    check(block, folder, "captured", x)
    for file in folder.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(CacheWarning, match=said):
        check(block, folder, "captured", x)
    check(block, folder, "disk cache", x)


def rewritten(folder):
    """The files of programs; others hold what torch.export gave, for other sizes."""

    def holds_program(path):
        try:
            return serialize.loads(cache._open(path.stem, path.read_bytes())[1])
        except stored_values.Unreadable:
            return None

    return set(filter(holds_program, folder.iterdir()))


def test_a_program_of_another_module_is_not_used(block, folder):
    """Even where a file says that it is the right one."""
    x = torch.randn(1, 3, 8, 8)
    check(block, folder, "captured", x)
    (own,) = rewritten(folder)
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), *block[1:3], torch.nn.Conv2d(16, 3, 3, padding=1))
    wide[1] = torch.nn.GroupNorm(2, 16)
    check(wide, folder, "captured", x)
    (other,) = rewritten(folder) - {own}
    _, content = cache._open(other.stem, other.read_bytes())
    own.write_bytes(cache._closed(own.stem, content))
    with pytest.warns(CacheWarning, match="not those of the module"):
        check(block, folder, "captured anew for these sizes", x)


def test_a_folder_that_cannot_be_written_is_no_error(block, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.warns(CacheWarning, match="could not be stored"):
        check(block, file / "cache", "captured", torch.randn(1, 3, 8, 8))


_WRITER = """
import sys
from diffusers_oneflow.cache import Cache
cache = Cache(sys.argv[1])
print("ready", flush=True)
while True:
    for i in range(4):
        cache.store(f"{i:064x}", bytes([i]) * 3_000_000)
"""


def test_killed_writers_leave_a_cache_that_works(folder):
    store = Cache(folder)
    for delay in (0.0, 0.02, 0.05):
        writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE) for _ in range(2)]
        for writer in writers:
            assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        for _ in range(50):  # beside two writers no reader ever sees half a file, which would warn
            for i in range(4):
                content = store.load(f"{i:064x}")
                assert content is None or content == bytes([i]) * 3_000_000
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        for i in range(4):
            assert store.load(f"{i:064x}") in (None, bytes([i]) * 3_000_000)
    store.store(KEY, b"new")
    assert store.load(KEY) == b"new"


def test_abandoned_parts_are_removed_and_fresh_ones_are_not(folder):
    store = Cache(folder)
    store.store(KEY, b"x")
    names = [f"diffusers_oneflow-unfinished-{i}.part" for i in "ab"]
    for name, age in zip(names, (7200, 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    store.store(KEY, b"x")
    assert sorted(p.name for p in folder.iterdir()) == [f"{KEY}.program", names[1]]


def test_an_unfinished_file_is_known_as_one(folder, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *args: os._exit(0))
    if not (child := os.fork()):
        Cache(folder).store(KEY, b"x")
        os._exit(1)
    os.waitpid(child, 0)
    (left,) = folder.iterdir()
    os.utime(left, (1000, 1000))
    monkeypatch.undo()
    Cache(folder).store(KEY, b"x")
    assert [p.name for p in folder.iterdir()] == [f"{KEY}.program"]


def test_files_of_others_in_the_folder_stay(folder):
    folder.mkdir()
    others = ["film.part", f"{KEY}.part", "my.program", f"{KEY[1:]}.program", f"{KEY.upper()}.program", f"{KEY}.program.bak"]
    for name in others:
        (folder / name).write_bytes(bytes(1000))
        os.utime(folder / name, (1000, 1000))
    store = Cache(folder, most_bytes=100)
    store.store(KEY, bytes(1000))
    assert store.usage() == cache.Usage(0, 0)
    store.most_bytes = 10_000
    store.store(KEY, bytes(1000))
    assert store.clear().programs == 1
    assert sorted(p.name for p in folder.iterdir()) == sorted(others)


def test_the_least_recently_used_go(folder):
    store = Cache(folder, most_bytes=3500)
    keys = [f"{i:064x}" for i in range(4)]
    for i, key in enumerate(keys[:3]):
        store.store(key, bytes(900))
        os.utime(folder / f"{key}.program", (1000 + i,) * 2)
    assert store.load(keys[0]) is not None
    store.store(keys[3], bytes(900))
    assert [store.load(key) is not None for key in keys] == [True, False, True, True]


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert directory(True) is None  # conftest turns it off
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert directory(True) == tmp_path and directory(None) is None and directory(False) is None
    assert directory("~/x").is_absolute() and directory(tmp_path / "y") == tmp_path / "y"
    monkeypatch.delenv(VARIABLE)
    assert "diffusers_oneflow" in str(directory(True))
    with pytest.raises(ValueError, match="cache is 3"):
        OneFlowConfig(cache=3)


def test_the_command_line(folder):
    runner = CliRunner()
    Cache(folder).store(KEY, bytes(1000))
    (folder / "other.txt").write_text("not ours")
    shown = runner.invoke(app, ["cache", "info", "--folder", str(folder), "--json"])
    assert shown.exit_code == 0 and '"programs": 1' in shown.stdout
    assert "1, 0.0 MB" in runner.invoke(app, ["cache", "info", "--folder", str(folder)]).stdout
    assert "1 programs" in runner.invoke(app, ["cache", "clear", "--folder", str(folder)]).stdout
    assert [p.name for p in folder.iterdir()] == ["other.txt"]
    refused = runner.invoke(app, ["cache", "info"])
    assert refused.exit_code == 2 and "turns it off" in refused.output


def test_another_process_finds_it(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch, diffusers_oneflow\n"
        "from diffusers_oneflow.backend import dispatcher_of\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        return self.inner(x) * FACTOR\n"
        "FACTOR = float(sys.argv[2])\n"
        "module = Own().eval()\n"
        "diffusers_oneflow.compile(module, diffusers_oneflow.OneFlowConfig(fallback='error', cache=sys.argv[1]))\n"
        "import diffusers_oneflow.libraries as f\n"
        "f.STARTED = 1e18\n"
        "with torch.no_grad():\n"
        "    x = torch.randn(2, 4)\n"
        "    assert torch.allclose(module(x), module._call_impl(x), atol=1e-5)\n"
        "print(dispatcher_of(module).entries[0].origin)\n"
    )
    said = []
    for factor in ("2", "2"):
        done = subprocess.run([sys.executable, str(script), str(folder), factor], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    assert said == ["captured", "disk cache"]
