import numpy
import pytest
import torch

from benchmarks import common, plots, speed
from benchmarks.peers import check, prepare
from benchmarks.speed import Job

SECONDS = {"oneflow": [1.0, 3.0, 1.0], "torch": [2.0, 6.0, 2.0], "torch-compile": [1.0]}


class Fake:
    """A subject without a model; torch-compile breaks in its second round."""

    cases = ("unet step",)
    threads = 2

    def __init__(self, peer, job):
        self._peer, self._left = peer, list(SECONDS[peer])

    def first(self, case):
        return 5.0, numpy.array([1.0, 4.0 if self._peer == "torch" else 3.0])

    def turn(self, case):
        if not self._left:
            raise RuntimeError("it broke")
        return self._left.pop(0)

    def close(self):
        return 2**30


@pytest.fixture
def report(monkeypatch):
    monkeypatch.setattr(speed, "_Local", Fake)
    job = Job("demo", 16, 2, True, 3)
    return speed.as_json(job, speed.measure(job, list(SECONDS), together=True))


def test_medians_ratios_and_errors(report):
    ours = report["peers"]["oneflow"]["cases"]["unet step"]
    assert ours["seconds"].median == 1.0
    assert ours["ratio_to_torch"] == common.Summary(0.5, 0.5, 0.5, 3)
    assert ours["compile_seconds"] == 4.0
    assert ours["error_against_torch"] == 0.25
    assert report["peers"]["oneflow"]["peak_bytes"] == 2**30


def test_a_peer_that_breaks_is_left_out(report):
    broken = report["peers"]["torch-compile"]
    assert broken["failure"] == "it broke"
    assert broken["cases"] == {}
    assert report["peers"]["torch"]["failure"] is None


def test_table_and_plot(report, capsys, tmp_path):
    speed.show(report)
    shown = capsys.readouterr().out
    assert "0.50 (0.50-0.50)" in shown
    assert "torch-compile failed: it broke" in shown
    plots.speed({"machine": common.machine(), **report}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_peers():
    with pytest.raises(ValueError, match="unknown peer 'tensorflow'"):
        check("tensorflow")
    conv = torch.nn.Conv2d(3, 4, 3)
    prepare("torch-channels-last", [conv])
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
