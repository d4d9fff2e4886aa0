import pytest

from benchmarks import common, gpu_bars, gpu_profile
from benchmarks.gpu_device import Event

MIB = 1 << 20


def report(ours=1.0, compiled=1.0, autotuned=2.0, first=10.0, reserved=MIB, excess=0.5):
    peak = {"allocated": 0, "used": MIB}
    alone = {"oneflow": {**peak, "reserved": reserved}, "torch": {**peak, "reserved": MIB}}
    return {
        "options": {"parity": True, "batch": 1, "alone": True},
        "peers": {
            "oneflow": {"ms": [ours] * 3, "first_seconds": first},
            "torch": {"ms": [5.0] * 3},
            "reduce-overhead": {"ms": [compiled] * 3},
            "max-autotune": {"ms": [autotuned] * 3},
        },
        "alone": {peer: {"peak": taken, "weight_bytes": MIB} for peer, taken in alone.items()},
        "parity": {"peers": {"oneflow": {"excess": excess, "factor": 1.2}}},
    }


def outcome(case, found):
    return {bar["bar"]: bar["passed"] for bar in gpu_bars.judge(case, found)}


STEP, BUILD, HELD, DRIVER, PARITY = (bar.name for bar in gpu_bars.BARS[:5])


def test_every_bar_of_a_step_holds_up_to_its_limit():
    good = report(ours=0.84, first=14.9, reserved=int(1.19 * MIB), excess=0.99)
    assert outcome("sd15-unet", good) == dict.fromkeys((STEP, BUILD, HELD, DRIVER, PARITY), True)
    for name, bad in {
        STEP: report(ours=0.86), BUILD: report(ours=0.5, first=15.1), HELD: report(ours=0.5, reserved=int(1.22 * MIB)),
        PARITY: report(ours=0.5, excess=1.01),
    }.items():  # fmt: skip
        assert [bar for bar, passed in outcome("sd15-unet", bad).items() if not passed] == [name]


def test_the_fastest_torch_compile_is_the_bar():
    assert not outcome("vae-512", report(ours=0.9, compiled=3.0, autotuned=1.0))[STEP]
    assert outcome("vae-512", report(ours=0.9, compiled=3.0, autotuned=2.0))[STEP]


def test_what_was_not_asked_for_is_not_judged_and_what_failed_is_missed(capsys):
    asked = report()
    del asked["peers"]["reduce-overhead"], asked["peers"]["max-autotune"], asked["parity"]
    asked["options"]["parity"] = False
    assert set(outcome("sdxl-unet", asked)) == {HELD, DRIVER}
    assert "without reduce-overhead or max-autotune" in capsys.readouterr().out
    failed = report(ours=0.1)
    failed["peers"]["max-autotune"] = {"failed": "no room"}
    del failed["parity"]
    assert outcome("sdxl-unet", failed) == {STEP: False, HELD: True, DRIVER: True, PARITY: False}
    assert BUILD not in outcome("text-encoder", report()) and STEP not in outcome("text-encoder", report())


@pytest.mark.parametrize("seconds, ratio, passed", [(0.34, 0.84, (True, True)), (0.36, 0.86, (False, False))])
def test_images(seconds, ratio, passed):
    peers = {"oneflow": {"seconds": {"50-pt": [seconds] * 3}}, "reduce-overhead": {"seconds": {"50-pt": [seconds / ratio] * 3}}}
    found = outcome("sd15-e2e", {"options": {"batch": 1}, "peers": peers})
    assert tuple(found.values()) == passed
    assert outcome("sd15-e2e", {"options": {"batch": 4}, "peers": peers}) == {}


@pytest.mark.parametrize(
    "name, kind",
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "product"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_f16_s16816gemm_f16_64x64_64x6_tn_align8>", "product"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("_group_norm_kernel", "other"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert gpu_profile.kind(name) == kind


class Recorded:
    """A device on which the same three kernels run in each call; it takes 1 ms."""

    def events(self, step):
        return [Event("nvjet", 0.0, 300.0), Event("nvjet", 200.0, 300.0), Event("norm", 600.0, 100.0)]

    def milliseconds(self, step, times):
        return 1.0


def test_floors_and_gaps(capsys):
    reached = {"tflop_per_second": 500.0, "gb_per_second": 1000.0}
    ops = [
        {"op": "aten.linear", "kernel": "cublas + triton", "where": "", "bytes": 50_000_000, "flops": 10**11},
        {"op": "aten.linear", "kernel": "cublas", "where": "", "bytes": 300_000_000, "flops": 10**10},
        {"op": "aten.add", "kernel": "triton", "where": "", "bytes": 10_000_000, "flops": 0},
    ]
    found = gpu_profile.profile(Recorded(), lambda: None, ops, reached)
    # The first two overlap by 100 us.
    assert (found["busy_ms"], found["idle_ms"]) == (0.6, pytest.approx(0.1))
    assert [(row["kernel"], row["count"], row["us"]) for row in found["kernels"]] == [("nvjet", 2, 600.0), ("norm", 1, 100.0)]
    product, other = (next(row for row in found["classes"] if row["class"] == c) for c in ("product", "other"))
    assert (product["ms"], product["count"]) == (0.6, 2)
    assert product["arithmetic_ms"] == pytest.approx(0.2 + 0.02)
    assert product["memory_ms"] == pytest.approx(0.05 + 0.3)
    assert product["floor_ms"] == pytest.approx(0.2 + 0.3)  # each op by what takes it longest
    assert other["floor_ms"] == pytest.approx(0.01)
    gpu_profile.show("recorded", found)
    assert "nvjet" in capsys.readouterr().out
    shown = gpu_profile.plotted({**found, "kernels": [{**found["kernels"][0], "kernel": str(n)} for n in range(25)]})
    assert (len(shown["kernels"]), shown["kernels"][-1]["count"]) == (21, 10)
    assert sum(row["ms"] for row in shown["kernels"]) == pytest.approx(25 * 0.6)
    assert shown["call_ms"] == common.summarize([1.0] * 5)
