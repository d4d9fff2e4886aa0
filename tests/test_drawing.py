"""The examples that hypothesis draws for the tests, and for the ops of the conformance suite."""

import importlib

from hypothesis import given, settings
from hypothesis import strategies as st


def drawn() -> list[str]:
    """What a test of two arguments gets, in one run."""
    found = []

    @settings(max_examples=300)
    @given(st.lists(st.floats(0, 5), min_size=3, max_size=9), st.integers(-100000, 100000))
    def collect(numbers, number):
        found.append(repr((numbers, number)))

    collect()
    return found


def test_what_is_loaded_does_not_change_what_is_drawn(tmp_path, monkeypatch):
    before = drawn()
    monkeypatch.syspath_prepend(tmp_path)
    numbers = [(n * 0.37 + 0.011, n * 1009 - 9001) for n in range(12)]
    (tmp_path / "more_numbers.py").write_text(f"NUMBERS = {numbers}")
    importlib.import_module("more_numbers")
    assert len(set(before)) > 100
    assert drawn() == before
