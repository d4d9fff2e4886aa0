"""Compiled graphs: memory, inputs, outputs, ends."""

import pytest
import torch

from diffusers_oneflow import OneFlowConfig, compile, detach
from diffusers_oneflow.backend import dispatcher_of
from diffusers_oneflow.graph import GraphClosed


def attached(module, **options):
    return compile(module, OneFlowConfig(fallback="error", progress=False, **options))


def graphs(module):
    return [e.graph for e in dispatcher_of(module).entries]


@torch.no_grad()
def test_shapes_share_one_copy_of_the_weights(block):
    attached(block)
    for size in (8, 12, 16):
        block(torch.randn(1, 3, size, size))
    bound = dispatcher_of(block)._builder.weights._bound
    assert len(graphs(block)) == 3
    assert set(bound) == set(dict(block.named_parameters()))
    # In place, and OneFlow sees it: the memory is torch's.
    block[0].weight.fill_(3.0)
    assert (bound["0.weight"][0].numpy() == 3.0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2, 6, 8, 8)[:, ::2],
        lambda: torch.randn(1, 3, 1, 8).expand(2, 3, 8, 8),
        lambda: torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
        lambda: torch.randn(8, 8, 3, 2).permute(3, 2, 1, 0),
    ],
)
@torch.no_grad()
def test_inputs_of_any_strides_are_unchanged(block, make):
    x = make()
    before, strides, expected = x.clone(), x.stride(), block(x)
    torch.testing.assert_close(attached(block)(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)
    assert x.stride() == strides


@torch.no_grad()
def test_an_input_handed_back_is_the_input():
    class Both(torch.nn.Module):
        def forward(self, x):
            return x, x + 1, x

    x = torch.ones(3)
    first, second, third = attached(Both())(x)
    assert first is x and third is x
    assert second.tolist() == [2.0] * 3


@torch.no_grad()
def test_a_closed_graph_says_so(block):
    attached(block)(torch.randn(1, 3, 8, 8))
    graph = graphs(block)[0]
    graph.close()
    graph.close()
    with pytest.raises(GraphClosed):
        graph([torch.randn(1, 3, 8, 8)])
    detach(block)


@torch.no_grad()
def test_results_are_new_tensors(block):
    attached(block)
    x = torch.randn(1, 3, 8, 8)
    first = block(x)
    kept = first.clone()
    block(torch.randn(1, 3, 8, 8))
    assert torch.equal(first, kept)


@torch.no_grad()
def test_a_wrong_shape_from_a_lowering_is_noticed(block, monkeypatch):
    from diffusers_oneflow.lowering import registry

    monkeypatch.setitem(registry._TABLE, "aten.silu.default", lambda x: x[:, :1])
    with pytest.raises(Exception, match=r"the lowering of aten.silu.default in 2.* please report this"):
        attached(block, kernels="oneflow")(torch.randn(1, 3, 8, 8))
