"""The GPU benchmark, walked on the CPU with tiny models: its graphs are those that a GPU would replay."""

import json
import os
import signal

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_e2e, gpu_peers, gpu_profile, gpu_steps
from benchmarks.gpu_device import Cpu
from diffusers_oneflow import building
from diffusers_oneflow.kernels import loader


@pytest.fixture
def replayed(monkeypatch):
    """Graphs are planned, and replayed, as on a GPU."""
    if loader.instruction_set() is None:
        pytest.skip("the kernel pack cannot be used here")
    monkeypatch.setattr(building.Builder, "compile", building.Builder.compile_elsewhere)


def options(case, *peers, **others):
    common = {"batch": 1, "dtype": "float32", "repeats": 2, "parity": False, "profile": [], "tiny": True}
    images = {"steps": [2], "outputs": ["pt", "pil"], "scheduler": "ddim"}
    return {"case": case, "peers": list(peers), **common, **images, **others}


@pytest.mark.parametrize("case", gpu_cases.CASES)
def test_every_case(case, replayed):
    said = []
    asked = options(case, "oneflow", "torch", "torch-graph", parity=True, profile=["oneflow"])
    report = gpu_steps.measure(asked, Cpu(), lambda part: said.append(sorted(p for p, f in part["peers"].items() if f)))
    # Each peer's figures are out before the next is built.
    assert said[:3] == [["oneflow"], ["oneflow", "torch"], ["oneflow", "torch", "torch-graph"]]
    assert "failed" not in report
    for found in report["peers"].values():
        assert "failed" not in found and found["finite"] and len(found["ms"]) == 2
    ours = report["peers"]["oneflow"]
    assert ours["difference"] < 1e-5
    assert report["parity"]["reference"] == "float64"
    assert report["parity"]["peers"]["oneflow"]["excess"] < 2
    assert ours["built"]["planned_bytes"] < ours["built"]["unplanned_bytes"]
    counted = sum(row["flops"] for row in ours["profile"]["classes"])
    # All but the convolution before the decoder of a VAE.
    assert counted == pytest.approx(report["flops"], rel=1e-3)


def test_torch_compile_and_a_larger_batch(replayed):
    report = gpu_steps.measure(options("sd15-unet", "oneflow", "reduce-overhead", batch=2), Cpu())
    once = sum(gpu_cases.flops("sd15-unet", tiny=True).values())
    assert report["flops"] > 1.9 * once
    assert all(len(found["ms"]) == 2 for found in report["peers"].values())


def test_a_peer_that_fails_is_told_and_the_others_go_on(monkeypatch, capsys):
    def captured(self, step):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Cpu, "captured", captured)
    report = gpu_steps.measure(options("text-encoder", "torch-graph", "torch"), Cpu())
    assert "no room" in report["peers"]["torch-graph"]["failed"]
    assert "ms" not in report["peers"]["torch-graph"]
    assert len(report["peers"]["torch"]["ms"]) == 2
    gpu.show({"case": "text-encoder", "options": options("text-encoder"), **report})
    assert "failed" in capsys.readouterr().out


def test_without_a_profiler_the_rest_is_measured(monkeypatch):
    def events(self, step):
        raise RuntimeError("no counters here")

    monkeypatch.setattr(Cpu, "events", events)
    report = gpu_steps.measure(options("text-encoder", "torch", profile=["torch"]), Cpu())
    assert "no counters here" in report["profiler"]["failed"]
    assert len(report["peers"]["torch"]["ms"]) == 2 and "profile" not in report["peers"]["torch"]


def test_where_float64_does_not_fit_float32_is_the_reference():
    case = gpu_cases.CASES["text-encoder"]
    module = gpu_cases.create(case, "cpu", torch.bfloat16, True)
    given = gpu_cases.inputs(case, module, True, 1, "cpu", torch.bfloat16)
    with torch.no_grad():
        made = module(**given)[0]

    def full(module, args):
        if next(module.parameters()).dtype == torch.float64:
            raise torch.OutOfMemoryError("no room")

    module.register_forward_pre_hook(full)
    with torch.no_grad():
        found = gpu_steps.against_wide("text", case, module, given, {"oneflow": 1.5 * made}, made, Cpu())
    assert found["reference"] == "float32"
    assert 0 < found["torch"]["rms"] < 0.05
    assert found["peers"]["oneflow"]["excess"] > 5  # half as large again


@pytest.mark.parametrize(
    "case, millions, tera",
    [
        ("sd15-unet", 859.5, 1.607), ("sdxl-unet", 2567.5, 13.52), ("sd3-transformer", 2028.3, 17.81),
        ("flux-transformer", 11901.4, 74.38), ("vae-512", 83.65, 2.515), ("text-encoder", 123.06, 0.0133),
    ],
)  # fmt: skip
def test_models_have_their_full_size(case, millions, tera):
    module = gpu_cases.create(gpu_cases.CASES[case], "meta", torch.float16)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, rel=2e-4)
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert sum(gpu_cases.flops(case).values()) / 1e12 == pytest.approx(tera, rel=1e-3)


def test_peers_share_weights_and_nothing_else(unet):
    copy = gpu_peers.sharing(unet)
    assert all(a is b for a, b in zip(copy.parameters(), unet.parameters()))
    assert not set(map(id, copy.modules())) & set(map(id, unet.modules()))


@pytest.mark.parametrize("scheduler", gpu_e2e.SCHEDULERS)
def test_images(scheduler, replayed):
    peers = ("oneflow", "torch", "reduce-overhead") if scheduler == "ddim" else ("oneflow", "torch")
    report = gpu_e2e.measure(options("sd15-e2e", *peers, batch=2, scheduler=scheduler), Cpu())
    for found in report["peers"].values():
        assert "failed" not in found
        assert set(found["seconds"]) == {"2-pt", "2-pil"}
        assert found["difference"] < 1e-4
    assert report["peers"]["oneflow"]["built"]["vae"]["kernels"]


def test_the_command(tmp_path, capsys):
    argv = ["--device", "cpu", "--tiny", "--case", "text-encoder", "--peers", "oneflow", "torch", "--dtype", "float32"]
    gpu.main([*argv, "--repeats", "2", "--profile", "torch", "--alone", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "gpu-text-encoder-float32-batch1-tiny.json").read_text())
    assert written["command"].endswith(str(tmp_path)) and "--case text-encoder" in written["command"]
    assert len(written["peers"]["oneflow"]["ms"]) == 2 and "failed" not in written
    assert [bar["bar"] for bar in written["bars"]] == ["peak memory, weights included, oneflow / torch", "the same by the driver"]
    assert set(written["alone"]) == {"oneflow", "torch"}
    assert (tmp_path / "gpu-text-encoder-float32-batch1-tiny.png").exists()
    assert (tmp_path / "gpu-text-encoder-float32-batch1-tiny-profile-torch.png").exists()
    assert "not judged: text-encoder: error against" in capsys.readouterr().out


def dying(channel, options):
    channel.send(("part", {"peers": {"torch": {"ms": [1.0, 2.0]}, "oneflow": {}}}))
    os.kill(os.getpid(), signal.SIGABRT)


def silent(channel, options):
    channel.recv()


@pytest.mark.parametrize("target, limit, said", [(dying, 300, "SIGABRT"), (silent, 3, "nothing came for 3 s")])
def test_what_a_case_found_before_it_died_is_kept(target, limit, said, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "serve", target)
    argv = ["--device", "cpu", "--tiny", "--case", "sd15-unet", "--peers", "torch", "oneflow", "--limit", str(limit)]
    assert gpu.main([*argv, "--out", str(tmp_path)]) == 1
    written = json.loads((tmp_path / "gpu-sd15-unet-float16-batch1-tiny.json").read_text())
    assert said in written["failed"]
    if target is dying:
        assert written["peers"]["torch"]["ms"] == [1.0, 2.0]
        build = next(bar for bar in written["bars"] if bar["limit"] == 15.0)
        assert not build["passed"]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [("cudnn", "convolution"), ("cudnn, with its ends", "convolution"), ("cudnn by torch", "convolution"),
     ("cudnn_attention", "attention"), ("flash_attention_4", "attention"), ("cublasLt", "product"), ("quack", "product"),
     ("cublasLt, triton gated", "product"), ("torch aten.mm.default", "product"), ("triton copy", "copy"),
     ("triton filters", "other"), ("triton gated", "other")],
)  # fmt: skip
def test_the_arithmetic_of_a_step_counts_for_the_kernels_that_do_it(kernel, kind):
    assert gpu_profile._of(kernel) == kind


@pytest.mark.parametrize("warm", [True, False])
def test_caches_from_elsewhere_are_read_if_asked_for(warm, monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    with gpu._fresh_caches(warm):
        assert (os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere") == warm
    assert ("what TORCHINDUCTOR_CACHE_DIR holds is not read without --warm" in capsys.readouterr().err) == (not warm)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
