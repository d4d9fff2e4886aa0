"""Tensors enter a graph unchanged, and leave it for the caller alone."""

import pytest
import torch

from diffusers_oneflow.ports import Port

SMALL, LARGE = (2, 3), (600, 600)


@pytest.mark.parametrize("shape", [(), SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_what_enters_is_what_was_given(shape, dtype):
    port = Port(shape, dtype)
    for _ in range(2):
        given = torch.rand(shape).mul(5).to(dtype)
        assert torch.equal(torch.from_numpy(port.enter(given).numpy()).to(dtype), given)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("make", [torch.Tensor.t, lambda t: t.t()[:, :1].expand(t.shape[::-1]), lambda t: torch._neg_view(t.t())])
def test_inputs_of_other_strides_enter_right_and_stay(shape, make):
    given = make(torch.rand(shape))
    before = given.clone()
    entered = Port(given.shape, given.dtype).enter(given)
    assert torch.equal(torch.from_numpy(entered.numpy()), before)
    entered.zero_().numpy()
    assert torch.equal(given, before)


@pytest.mark.parametrize("shape", [SMALL, (200, 200), LARGE])
def test_each_result_has_memory_of_its_own(shape):
    port, results = Port(shape, torch.float32), []
    for number in range(20):
        made, flow, address = port.leave()
        flow.fill_(number).numpy()  # waits
        port.finish(address)
        results.append(made)
    assert [r.unique().tolist() for r in results] == [[float(number)] for number in range(20)]


@pytest.mark.parametrize("shape", [SMALL, (200, 200)])
def test_results_can_be_written_to_whatever_mode_the_port_was_made_in(shape):
    with torch.inference_mode():
        port = Port(shape, torch.float32)
        port.enter(torch.ones(shape))
        port.leave()
    made, _, _ = port.leave()
    port.enter(torch.ones(shape))
    made.add_(1)
    assert not made.is_inference()
