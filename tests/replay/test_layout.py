"""Parameters in the order that a GPU's kernels read, in place."""

import torch
from torch import nn

from diffusers_oneflow.replay.layout import Layout


def test_filters_are_laid_out_and_come_back():
    module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(3, 3), nn.Conv1d(2, 2, 3))
    before = {n: (p.clone(), p.stride()) for n, p in module.named_parameters()}
    parameters = list(module.parameters())
    layout = Layout(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last) and not module[0].weight.is_contiguous()
    assert all(a is b for a, b in zip(parameters, module.parameters()))
    assert all(torch.equal(p, before[n][0]) for n, p in module.named_parameters())
    assert [n for n, p in module.named_parameters() if p.stride() != before[n][1]] == ["0.weight"]
    layout.undo()
    assert all(torch.equal(p, before[n][0]) and p.stride() == before[n][1] for n, p in module.named_parameters())


def test_what_was_laid_out_by_the_user_stays():
    module = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    layout = Layout(module)
    layout.undo()
    assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_filter_that_was_replaced_meanwhile_stays():
    module = nn.Conv2d(4, 6, 3)
    layout = Layout(module)
    module.weight.data = torch.zeros(6, 4, 3, 3)
    layout.undo()
    assert module.weight.is_contiguous() and not module.weight.any()


class Attention(nn.Module):
    """As those of diffusers: over itself, or over a prompt of another width."""

    def __init__(self, prompt=None, bias=False):
        super().__init__()
        self.to_q = nn.Linear(8, 8, bias=bias)
        self.to_k, self.to_v = (nn.Linear(prompt or 8, 8, bias=bias) for _ in range(2))


def beside(*tensors):
    """Whether they lie one after the other."""
    ends = [t.data_ptr() + t.nbytes for t in tensors]
    return all(end == other.data_ptr() for end, other in zip(ends, tensors[1:]))


def test_layers_that_read_the_same_tensor_lie_side_by_side():
    module = nn.ModuleList([Attention(bias=True), Attention(prompt=6), Attention(prompt=6)])
    before = {n: p.clone() for n, p in module.named_parameters()}
    parameters = list(module.parameters())
    layout = Layout(module)
    own, first, second = module
    assert beside(own.to_q.weight, own.to_k.weight, own.to_v.weight) and beside(own.to_q.bias, own.to_k.bias, own.to_v.bias)
    # All layers read the prompt.
    assert beside(first.to_k.weight, first.to_v.weight, second.to_k.weight, second.to_v.weight)
    assert all(a is b for a, b in zip(parameters, module.parameters()))
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    layout.undo()
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in module.parameters())


def test_a_weight_that_two_layers_share_stays_where_it_is():
    module = nn.ModuleList([Attention(), Attention()])
    module[1].to_q.weight = module[0].to_q.weight
    place = module[0].to_q.weight.data_ptr()
    Layout(module)
    assert module[0].to_q.weight.data_ptr() == module[1].to_q.weight.data_ptr() == place
    assert beside(module[0].to_k.weight, module[0].to_v.weight)
