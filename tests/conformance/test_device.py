"""Cases elsewhere than on the CPU in float32: the way of a GPU, walked on the CPU, and half types."""

import json

import pytest
import torch
from rich.console import Console

from conformance import place, registry, runner
from conformance.__main__ import UNUSABLE, main
from conformance.noise import SameNoise
from conformance.place import Place
from diffusers_oneflow import building
from diffusers_oneflow.kernels import loader
from diffusers_oneflow.replay.graph import ReplayGraph

CASES = (
    "aten.conv2d.default", "aten.arange.default", "aten.split.Tensor", "aten.to.device", "model-unet", "model-vae_decoder",
    "StableDiffusionPipeline", "demo-lora",
)  # fmt: skip


@pytest.fixture
def replayed(monkeypatch):
    """How many graphs were replayed."""
    made = []
    original = ReplayGraph.__init__

    def counted(self, *args, **kwargs):
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(ReplayGraph, "__init__", counted)
    return made


def results(tmp_path, *arguments: str) -> tuple[int, dict]:
    out = tmp_path / "numbers.json"
    code = main([*arguments, "--json", str(out)])
    return code, json.loads(out.read_text())


@pytest.mark.parametrize("name", CASES)
def test_cases_pass_on_the_way_of_other_devices(name, tmp_path, replayed):
    compile = building.Builder.compile
    code, found = results(tmp_path, "--replay", "--only", name)
    assert code == 0 and found["results"][name]["passed"] and found["environment"]["place"] == "cpu-replay"
    assert replayed and building.Builder.compile is compile


def test_a_fault_on_that_way_is_seen(tmp_path, monkeypatch):
    original = ReplayGraph.__call__
    monkeypatch.setattr(ReplayGraph, "__call__", lambda self, given: [t * 1.001 for t in original(self, given)])
    assert results(tmp_path, "--replay", "--only", "model-unet")[0] == 1


def test_half_types_are_judged_by_their_own_error(tmp_path):
    code, found = results(tmp_path, "--dtype", "bfloat16", "--only", "StableDiffusionPipeline")
    result = found["results"]["StableDiffusionPipeline"]
    assert (code == 0) == result["passed"]
    assert result["passed"] or loader.instruction_set() != "amx"
    assert all(c["factor"] == 1.2 and c["torch"]["rms"] > 1e-3 for c in result["components"])
    # Not the largest errors: those of a model so small are chance, and differ between processors with and without AMX.
    assert all(c["ours"]["rms"] <= 1.2 * c["torch"]["rms"] for c in result["components"])


def test_an_op_is_called_in_the_dtype_of_the_place(tmp_path):
    found = results(tmp_path, "--replay", "--dtype", "bfloat16", "--only", "aten.silu.default")[1]["results"]
    paths = {c["path"] for c in found["aten.silu.default"]["components"]}
    assert {"aten.silu.default (op) bfloat16", "aten.silu.default (passes) bfloat16"} <= paths


def test_what_does_not_apply_is_listed_and_is_no_failure(tmp_path, capsys):
    code, found = results(tmp_path, "--dtype", "float16", "--only", "model-t5-bf16", "--markdown", str(tmp_path / "x.md"))
    assert code == 0 and "without bf16" in found["results"]["model-t5-bf16"]["not_applicable"]
    assert "model-t5-bf16 does not apply here" in capsys.readouterr().out
    assert "- model-t5-bf16: " in (tmp_path / "x.md").read_text()


def test_what_torch_cannot_run_there_is_not_applicable_there_alone():
    entry = registry.CASES["StableDiffusionPipeline"].run.__self__
    object.__setattr__(entry, "prepare", fails_when_called)
    try:
        with place.running(Place(replay=True), "oneflow"):
            result = runner.run(registry.CASES["StableDiffusionPipeline"], Console(quiet=True))
        assert "torch itself cannot run it: RuntimeError: planted" in result.not_applicable
        usual = runner.run(registry.CASES["StableDiffusionPipeline"], Console(quiet=True))
        assert "planted" in usual.failures[0] and not usual.not_applicable
    finally:
        object.__setattr__(entry, "prepare", None)


def fails_when_called(pipe):
    """A pipeline whose UNet torch cannot run."""

    def forward(*args, **kwargs):
        raise RuntimeError("planted")

    pipe.unet.forward = forward


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_has_the_exit_code_of_what_cannot_run(capsys):
    assert main(["--device", "cuda", "--only", "t5"]) == UNUSABLE
    assert "torch cannot use cuda" in capsys.readouterr().out


def test_results_of_another_place_are_refused(tmp_path, capsys):
    results(tmp_path, "--only", "aten.silu.default")
    with pytest.raises(SystemExit):
        main(["--from", str(tmp_path / "numbers.json"), "--device", "cuda"])
    assert "has the results of cpu, not of cuda" in capsys.readouterr().err


def test_baselines_and_workers_know_the_place(monkeypatch):
    assert Place("cuda:1", "float16").baseline.name == "baseline-cuda-float16.json"
    for instructions, name in {"amx": "baseline.json", None: "baseline.json", "avx512": "baseline-avx512.json"}.items():
        monkeypatch.setattr(place.loader, "instruction_set", lambda found=instructions: found)
        assert Place().baseline.name == name
    there = Place("cuda", "float16")
    assert place.parse(*there.arguments()) == there and place.parse(*Place(replay=True).arguments()) == Place(replay=True)


def test_noise_is_the_same_in_every_dtype():
    def drawn(dtype):
        generator = torch.Generator().manual_seed(0)
        like = torch.randn_like(torch.empty(4, 64, dtype=dtype))
        return torch.randn(4, 64, generator=generator, dtype=dtype), like, torch.rand((4, 64), dtype=dtype)

    made = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        torch.manual_seed(0)
        with SameNoise():
            made.append(drawn(dtype))
        assert all(t.dtype == dtype for t in made[-1])
    for narrow in made[1:]:
        assert all(torch.equal(wide.to(t.dtype), t) for wide, t in zip(made[0], narrow))
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(made[0], drawn(torch.float32)))


def test_tensors_keep_their_strides():
    base = torch.arange(24.0).view(4, 6)
    for view in (base[:, 1:3], base.t(), base[1:, :1].expand(3, 5)):
        moved = Place(dtype="bfloat16").moved(view)
        assert moved.dtype == torch.bfloat16 and moved.stride() == view.stride() and torch.equal(moved.float(), view)
