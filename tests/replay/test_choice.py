"""What was measured is kept, and read again."""

import json

import pytest
import torch

from diffusers_oneflow.replay.cuda import choice

GPU = torch.device("cuda", 0)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """As on a GPU whose kernels take so many milliseconds."""
    path = tmp_path / "kernels.json"
    monkeypatch.setattr(choice, "_file", lambda device: path)
    choice._known.cache_clear()
    yield path
    choice._known.cache_clear()


def candidates(*milliseconds):
    """Each gives its time; None is one that raises."""

    def make(value):
        def call():
            if value is None:
                raise RuntimeError("not on this GPU")
            return value

        return call

    return [make(m) for m in milliseconds]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    measured = []

    def take(candidate):
        measured.append(candidate)
        return candidate()

    monkeypatch.setattr(choice, "_milliseconds", take)
    return measured


def test_the_fastest_that_runs_is_taken_and_kept(file, clock):
    assert choice.fastest("key", candidates(3.0, None, 1.0, 2.0, 0.1), GPU) == 2  # the last is spare
    choice.keep(0)
    assert json.loads(file.read_text()) == {"'key'": 2}
    choice._known.cache_clear()
    clock.clear()
    assert choice.fastest("key", candidates(0.5, 1.0, 9.0, 1.0, 1.0), GPU) == 2 and clock == []


def test_what_was_kept_and_does_not_run_is_measured_again(file):
    file.write_text(json.dumps({"'key'": 1, "'other'": "x"}))
    assert choice.fastest("key", candidates(3.0, None, 1.0), GPU) == 0


@pytest.mark.parametrize("text", ["[", "[1]", "{"])
def test_a_damaged_file_is_measured_anew(file, text):
    file.write_text(text)
    assert choice.fastest("key", candidates(2.0, 1.0, 5.0), GPU) == 1


def test_what_is_spare_is_taken_where_nothing_else_runs(file):
    assert choice.fastest("key", candidates(None, None, 4.0), GPU) == 2
    with pytest.raises(RuntimeError, match="no kernel computes this: not on this GPU"):
        choice.fastest("other", candidates(None, None), GPU)


def test_memory_that_is_short_is_said_as_such(file):
    def short():
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        choice.fastest("key", [short, short], GPU)


def test_measuring_ends_with_its_time(file, clock, monkeypatch):
    monkeypatch.setattr(choice.Budget, "left", 0.0)
    assert choice.fastest("key", candidates(2.0, 1.0, 1.0), GPU) == 0 and len(clock) == 1


def test_off_a_gpu_what_needs_no_library_is_taken():
    assert choice.fastest("key", candidates(1.0, 2.0), torch.device("cpu")) == 1
