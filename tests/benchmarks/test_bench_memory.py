from benchmarks import children, memory, models


def test_churn_sizes_differ_and_compare_alike():
    for count in (4, 20, 25):
        sizes = memory.churn_sizes(count)
        assert len(sizes) == len(set(sizes)) == count
        assert sizes[0] == max(sizes)
        assert {sizes[2], sizes[-1]} == set(sorted(sizes)[:2])
        assert all(size % 2 == 0 for size in sizes)  # the UNet halves them


def test_churn_at_toy_scale():
    resident = children.call(memory.churn, 4, "evict", "tiny")
    assert len(resident) == 4
    assert all(r > 50 << 20 for r in resident)


def test_peak_has_every_stage():
    stages = memory.peak("torch", "tiny", 8)
    assert list(stages) == ["imports", "weights", "call 1", "call 2", "peak"]
    assert stages["peak"] >= stages["call 2"] - (1 << 20)


def test_reports_judge_the_bars(capsys):
    assert memory._report_churn("evict", [90, 95, 100, 104])
    assert not memory._report_churn("evict", [90, 95, 100, 106])
    assert memory._report_peaks("sd15", {32: {"torch": {"peak": 100}, "oneflow": {"peak": 110}}})
    assert not memory._report_peaks("sd15", {32: {"torch": {"peak": 100}, "oneflow": {"peak": 111}}})
    assert not memory._report_peaks("sd15", {32: {"torch": {"peak": 100}}})  # OneFlow's process failed


def test_models_take_their_inputs():
    unet = models.unet("tiny")
    args, kwargs = models.unet_inputs(unet, 8)
    assert unet(*args, **kwargs)[0].shape == (2, 4, 8, 8)
