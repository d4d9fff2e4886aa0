"""Filters in the order that a GPU's kernels read, in place."""

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
