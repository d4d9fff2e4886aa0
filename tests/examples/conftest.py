"""The examples can be imported, as from one another."""

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))


@pytest.fixture(scope="session")
def examples() -> Path:
    return EXAMPLES


@pytest.fixture
def model(pipe, tmp_path) -> Path:
    """The folder of a tiny pipeline."""
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
