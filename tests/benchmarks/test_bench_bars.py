import pytest

from benchmarks import bars, common


def report(model="sd15", dtype="float32", case="unet step", **seconds):
    """A report of `speed`: peer (with _ for -) -> seconds of its rounds, or None if it has no result."""
    peers = {}
    for peer, rounds in seconds.items():
        result = {case: {"rounds": rounds, "seconds": common.summarize(rounds)}} if rounds else {}
        peers[peer.replace("_", "-")] = {"cases": result}
    return {"model": model, "dtype": dtype, "peers": peers}


def outcome(found):
    return {(bar["case"], bar["peers"], bar["limit"]): bar["passed"] for bar in found}


EAGER = ("torch", "torch-channels-last")


def test_the_better_layout_is_the_bar():
    # Half of torch, but 0.8 of channels_last.
    found = bars.judge(report(oneflow=[0.8] * 3, torch=[1.6] * 3, torch_channels_last=[1.0] * 3))
    assert outcome(found)["unet step", EAGER, 0.65] is False
    found = bars.judge(report(oneflow=[0.6] * 3, torch=[1.6] * 3, torch_channels_last=[1.0] * 3))
    assert outcome(found)["unet step", EAGER, 0.65] is True


def test_ratios_are_taken_round_by_round(capsys):
    slow = report(oneflow=[1.0, 10.0, 1.0], openvino=[1.0, 10.0, 1.0])
    (bar,) = bars.judge(slow)
    assert (bar["ratio"], bar["passed"]) == (1.0, True)
    assert "PASS sd15 float32 unet step, oneflow / openvino: 1.000 (bar: at most 1.1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "limit", "peers"),
    [
        (("sd15", "float32", "unet step"), 0.95, ("torch-compile-freezing",)),
        (("sd15", "float32", "unet step"), 1.1, ("openvino",)),
        (("sd15", "bfloat16", "unet step"), 0.8, (*EAGER, "torch-autocast")),
        (("sd15", "bfloat16", "unet step"), 1.15, ("openvino",)),
        (("sd15", "float32", "vae decode"), 0.85, EAGER),
        (("sd15", "float32", "text encoder"), 0.85, EAGER),
        (("demo", "float32", "pipeline, 10 steps"), 0.8, ("torch",)),
    ],
)
def test_every_bar_holds_up_to_its_limit(case, limit, peers):
    for ours, passed in ((limit - 0.01, True), (limit + 0.01, False)):
        given = {peer.replace("-", "_"): [1.0, 1.0] for peer in peers}
        found = outcome(bars.judge(report(*case, oneflow=[ours, ours], **given)))
        assert found[case[2].split(",")[0], peers, limit] is passed


def test_what_cannot_be_judged(capsys):
    # Not asked to run: no bar. Asked to, and without a result: missed.
    assert bars.judge(report(oneflow=[0.1], torch=[1.0])) == []
    assert "without torch-channels-last" in capsys.readouterr().out
    (bar,) = bars.judge(report(oneflow=[0.1], openvino=None))
    assert (bar["ratio"], bar["passed"]) == (None, False)
    (bar,) = bars.judge(report(oneflow=None, openvino=[1.0]))
    assert not bar["passed"]
    eager = report(oneflow=[0.1], torch=[1.0], torch_channels_last=[1.0])
    assert len(bars.judge(eager)) == 3  # the VAE and the text encoder have no result
    assert [bar["case"] for bar in bars.judge({**eager, "only": ("unet",)})] == ["unet step"]
    assert bars.judge(report(model="demo", oneflow=[9.0], openvino=[1.0], torch_channels_last=[1.0])) == []


def test_another_form_can_be_judged():
    given = report(oneflow=[2.0], oneflow_packed=[1.0], openvino=[1.0])
    assert [bar["passed"] for bar in bars.judge(given)] == [False]
    assert [bar["passed"] for bar in bars.judge(given, "oneflow-packed")] == [True]


def test_table(capsys):
    bars.show(report(oneflow=[1.0, 2.0], oneflow_packed=[0.5, 1.0], torch=[2.0, 4.0], openvino=None))
    lines = capsys.readouterr().out.splitlines()
    (torch,) = [line for line in lines if "torch" in line]
    assert "0.50 (0.50-0.50)" in torch
    assert "0.25 (0.25-0.25)" in torch
