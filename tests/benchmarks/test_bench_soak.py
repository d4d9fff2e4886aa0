import json
import time

import pytest

from benchmarks import soak
from benchmarks.common import Growth
from benchmarks.soak_parts import PARTS, Plan


def test_a_clean_run_passes(tmp_path, capsys):
    arguments = ["--quick", "--only", "calls", "--import-first", "--out", str(tmp_path)]
    assert soak.main(arguments) == 0
    assert "pass" in capsys.readouterr().out
    part = json.loads((tmp_path / "soak-import-first.json").read_text())["parts"]["calls"]
    assert (part["done"], part["wrong"], part["crash"]) == (300, 0, None)
    assert len(part["resident_bytes"]) == 300


@pytest.mark.parametrize(
    ("fault", "said"), [("wrong", "1 wrong results, the first: result 150"), ("crash", "after 150: SIGSEGV")]
)
def test_a_planted_fault_is_found(fault, said, capsys):
    assert soak.main(["--quick", "--only", "calls", "--idle", "--fault", fault]) == 1
    assert said in " ".join(capsys.readouterr().out.replace("│", " ").split())


def outcome(**changed):
    return {"done": 5, "wrong": 0, "first_wrong": "", "seconds": 1.0, "crash": None, "memory": None, **changed}


def test_faults():
    assert soak.faults(outcome()) == []
    assert soak.faults(outcome(memory=Growth(1e8, 1e8, 0.0, True))) == []
    assert "grew" in soak.faults(outcome(memory=Growth(1e8, 2e8, 1e8, False)))[0]
    assert soak.faults(outcome(done=0)) == ["nothing was done"]
    assert "ValueError" in soak.faults(outcome(crash="Traceback\nValueError: no"))[0]


def test_every_part_has_its_plans():
    assert set(soak.FULL) == set(soak.QUICK) == set(PARTS)
    assert soak.FULL["calls-sleep"] == Plan(20_000, sleep=0.002)
    assert soak.FULL["calls"].count == 20_000
    assert soak.FULL["images"].count == 200
    assert soak.FULL["threads"].count == 300


def test_busy_loops_end_with_the_block():
    with soak.busy(1):
        time.sleep(0.05)
