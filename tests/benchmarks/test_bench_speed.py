import numpy
import pytest
import torch

from benchmarks import common, models, plots, speed
from benchmarks.children import ChildFailed
from benchmarks.peers import cast, check, prepare
from benchmarks.speed import Job
from diffusers_oneflow import engine
from diffusers_oneflow.backend import dispatcher_of

SECONDS = {"oneflow": [1.0, 3.0, 1.0], "torch": [2.0, 6.0, 2.0], "torch-compile": [1.0]}
DEAD = "the process was killed by SIGSEGV"


class Fake:
    """A subject without a model; torch-compile breaks in the second round of its first case."""

    cases = ("unet step", "vae decode")
    threads = 2

    def __init__(self, peer, job):
        self._peer = peer

    def first(self, case):
        self._left = list(SECONDS[self._peer]) if case == "unet step" else [1.0] * 3
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


def test_a_peer_that_breaks_keeps_its_other_cases(report):
    broken = report["peers"]["torch-compile"]
    assert broken["case_failures"] == {"unet step": "it broke"}
    assert broken["failure"] is None
    assert list(broken["cases"]) == ["vae decode"]
    assert report["peers"]["torch"]["case_failures"] == {}


def test_a_child_goes_on_after_a_case_that_failed(monkeypatch):
    asked = [("first", "unet step"), *[("turn", "unet step")] * 3, ("first", "vae decode"), None]
    sent = []

    class Channel:
        def recv(self):
            return asked.pop(0)

        def send(self, message):
            sent.append(message)

    monkeypatch.setattr(speed, "Subject", Fake)
    speed._serve(Channel(), "torch-compile", Job("demo", 16, 2, True, 3))
    assert [kind for kind, _ in sent] == ["ready", "done", "done", "failed", "failed", "done"]
    assert sent[3] == ("failed", "RuntimeError: it broke")


def test_a_peer_whose_process_dies_has_no_more_cases(monkeypatch):
    class Dies(Fake):
        def turn(self, case):
            if self._peer == "torch-compile":
                raise ChildFailed(DEAD)
            return super().turn(case)

    monkeypatch.setattr(speed, "_Local", Dies)
    results = speed.measure(Job("demo", 16, 2, True, 3), list(SECONDS), together=True)
    assert results["torch-compile"].failure == DEAD
    assert "vae decode" not in results["torch-compile"].first
    assert len(results["oneflow"].seconds["vae decode"]) == 3


def test_table_and_plot(report, capsys, tmp_path):
    speed.show(report)
    shown = capsys.readouterr().out
    assert "0.50 (0.50-0.50)" in shown
    assert "torch-compile failed in unet step: it broke" in shown
    plots.speed({"machine": common.machine(), **report}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_peers():
    with pytest.raises(ValueError, match="unknown peer 'tensorflow'"):
        check("tensorflow")
    with pytest.raises(ValueError, match="for bfloat16 alone"):
        check("torch-autocast", "float32")
    conv = torch.nn.Conv2d(3, 4, 3)
    prepare("torch-channels-last", [conv])
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


needs_release = pytest.mark.skipif(bool(engine.native().release_refusal()), reason="memory cannot be released here")


@pytest.mark.parametrize(
    ("peer", "weights", "kernels"),
    [
        ("oneflow", "auto", "native"),
        ("oneflow-packed", "packed", "native"),
        pytest.param("oneflow-release", "release", "native", marks=needs_release),
        ("oneflow-own-kernels", "auto", "oneflow"),
    ],
)
def test_forms_of_oneflow(peer, weights, kernels):
    layer = torch.nn.Linear(4, 4)
    prepare(peer, [layer])
    config = dispatcher_of(layer).config
    assert (config.weights, config.kernels, config.fallback) == (weights, kernels, "error")


def test_cases_can_be_picked():
    names = ("unet step", "vae decode", "pipeline, 10 steps")

    def picked(pipeline, *only):
        return [name for name in names if speed._wanted(name, Job("demo", 16, 2, pipeline, 3, "float32", only))]

    assert picked(False) == ["unet step", "vae decode"]
    assert picked(True) == list(names)
    assert picked(False, "vae", "pipeline") == ["vae decode", "pipeline, 10 steps"]


def test_a_peer_computes_in_its_dtype(pipe):
    cast("openvino", pipe, "bfloat16")
    cast("torch", pipe, "float32")
    assert pipe.unet.dtype == torch.float32
    args, _ = models.unet_inputs(pipe.unet, 8)
    cast("torch", pipe, "bfloat16")
    rounded, _ = models.unet_inputs(pipe.unet, 8)
    assert {m.dtype for m in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}
    assert torch.equal(rounded[0], args[0].to(torch.bfloat16))


def test_autocast_keeps_its_weights():
    layer = torch.nn.Linear(8, 8)
    x, exact = torch.randn(2, 8), layer.weight.detach().clone()
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    try:
        prepare("torch-autocast", [layer], "bfloat16")
        with torch.no_grad():
            first = layer(x)
            # Written past the cast copy: who casts anew would see it.
            layer.weight.zero_()
            assert torch.equal(layer(x), first)
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
    assert torch.autocast_increment_nesting() == depth + 1
    torch.autocast_decrement_nesting()
    assert first.dtype == torch.bfloat16
    assert not torch.allclose(first.float(), torch.nn.functional.linear(x, exact, layer.bias), atol=0, rtol=1e-6)


def test_the_command_measures_and_judges(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "_Local", Fake)
    arguments = ["--together", "--repeats", "3", "--dtype", "bfloat16", "--model", "sd15", "--out", str(tmp_path)]
    assert speed.main([*arguments, "--peers", "oneflow,torch"]) == 0
    assert (tmp_path / "speed-sd15-32-bfloat16-together.json").exists()
    assert speed.main([*arguments, "--peers", "oneflow,torch-compile"]) == 1  # it fails in one case
    for wrong in (["--peers", "torch-autocast"], ["--only", "unet,door"]):
        with pytest.raises(SystemExit):
            speed.main(wrong)
