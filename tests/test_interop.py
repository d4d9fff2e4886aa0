"""Tensors cross to OneFlow without a copy, or are refused."""

import numpy as np
import pytest
import torch

from diffusers_oneflow import interop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.int8])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_memory_is_shared(dtype, shape):
    tensor = torch.ones(shape, dtype=dtype)
    other = interop.to_flow(tensor)
    tensor.fill_(7)
    assert tuple(other.shape) == shape
    assert (other.numpy() == 7).all()


def test_bool_travels_as_bytes():
    tensor = torch.tensor([True, False])
    assert interop.to_flow(tensor).numpy().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(2, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(2, 0), "an empty tensor"),
        (torch.ones(2, 2).to_sparse(), "layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), "a tensor on meta"),
        (torch.nn.Buffer(torch.ones(2)).as_subclass(type("Mine", (torch.Tensor,), {})), "type Mine"),
    ],
)
def test_refusals(tensor, reason):
    assert reason in interop.refusal(tensor)


def test_ordinary_tensors_are_taken():
    for tensor in (torch.ones(2), torch.nn.Parameter(torch.ones(2)), torch.tensor(True), torch.ones(2, dtype=torch.float16)):
        assert interop.refusal(tensor) is None


def test_a_graph_on_a_gpu_takes_tensors_from_the_cpu_too():
    gpu = torch.device("cuda", 0)
    assert interop.refusal(torch.ones(2, 3), gpu) is None
    assert interop.refusal(torch.empty(2, device="meta"), gpu) == "a tensor on meta for a model on cuda:0"


def test_dense_leaves_the_callers_memory_alone():
    base = torch.arange(12.0).reshape(3, 4)
    assert interop.dense(base).data_ptr() == base.data_ptr()
    turned = interop.dense(base.t())
    assert turned.is_contiguous()
    assert turned.data_ptr() != base.data_ptr()
    assert torch.equal(turned, base.t())
    assert torch.equal(interop.dense(torch._neg_view(base)), -base)


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)])
def test_a_permuted_weight_is_its_memory_and_a_permutation(order):
    weight = torch.randn(2, 3, 4, 5).permute(order)
    view, back = interop.flow_view(weight)
    assert view.is_contiguous()
    assert view.data_ptr() == weight.data_ptr()
    assert torch.equal(view.permute(back), weight)


def test_a_weight_with_holes_is_refused():
    with pytest.raises(ValueError, match="not dense"):
        interop.flow_view(torch.randn(4, 4)[:, ::2])
    assert interop.flow_view(torch.ones(2, 2))[1] is None
    assert np.isfinite(interop.to_flow(torch.ones(2)).numpy()).all()
