"""OneFlow's ways to a GPU that it cannot use."""

import oneflow as flow
import pytest
import torch

from diffusers_oneflow import border_setup, no_gpu

border_setup.install()

WAYS = {
    "a name": lambda: flow.ones(2, device="cuda"),
    "a device": lambda: flow.zeros(2, device=flow.device("cuda:0")),
    "like another": lambda: flow.ones_like(flow.ones(2), device="cuda"),
    "moved": lambda: flow.ones(2).to("cuda"),
    "moved by a keyword": lambda: flow.ones(2).to(device="cuda:1"),
    "cuda()": lambda: flow.ones(2).cuda(),
    "a layer": lambda: flow.nn.Linear(2, 2).to("cuda"),
    "a generator": lambda: flow.Generator("cuda"),
    "pinned": lambda: flow.ones(2).pin_memory(),
    "of a type": lambda: flow.cuda.FloatTensor(2),
}


@pytest.mark.skipif(no_gpu.refusal() is None, reason="OneFlow can use a GPU here")
@pytest.mark.parametrize("way", WAYS)
def test_it_is_an_error_and_no_abort(way):
    with pytest.raises(RuntimeError, match="keep it on the CPU"):
        WAYS[way]()


@pytest.mark.skipif(no_gpu.refusal() is None, reason="OneFlow can use a GPU here")
def test_nothing_is_of_a_type_on_a_gpu():
    assert not isinstance(flow.ones(2), flow.cuda.FloatTensor)


def test_what_stays_on_the_cpu_is_made():
    assert flow.ones(2, device="cpu").to(flow.float64).to("cpu").numpy().tolist() == [1.0, 1.0]
    assert flow.tensor([1.0]).to(flow.ones(1)).numpy().tolist() == [1.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it seeds a GPU")
def test_seeds_are_kept_for_later():
    flow.cuda.manual_seed_all(3)
    flow.cuda.manual_seed(3)


def test_a_newer_gpu_is_refused_with_its_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    no_gpu.refusal.cache_clear()
    try:
        assert "compute capability 9.0" in no_gpu.refusal()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
        no_gpu.refusal.cache_clear()
        assert no_gpu.refusal() is None
    finally:
        no_gpu.refusal.cache_clear()
