"""Parameters move to gaps before them, alone, and with the numbers that they had; torch's allocator is made up here."""

import pytest
import torch
from torch import nn

from diffusers_oneflow.replay.cuda import compact


@pytest.fixture
def allocator(monkeypatch):
    """``allocator(*places)``: clones lie in gaps at these places, one after the other; then in new blocks."""
    state = {"reserved": 100, "gaps": [], "given back": 0, "places": {}}

    def clone(tensor):
        made = tensor.detach().contiguous() + 0 if tensor.is_contiguous() else torch.empty_like(tensor).copy_(tensor)
        if state["gaps"]:
            place = state["gaps"].pop(0)
        else:
            place = 0
            state["reserved"] += 1
        state["places"][made.untyped_storage()._cdata] = place
        return made

    def place(tensor):
        return state["places"].get(tensor.untyped_storage()._cdata, 1000)

    def give_back():
        state["given back"] += 1

    monkeypatch.setattr(torch.Tensor, "clone", clone)
    monkeypatch.setattr(torch.Tensor, "data_ptr", place)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: state["reserved"])
    monkeypatch.setattr(torch.cuda, "empty_cache", give_back)
    return state


def storage(tensor):
    return tensor.untyped_storage()._cdata


def test_what_finds_a_gap_moves(allocator):
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5, bias=False)).to(memory_format=torch.channels_last)
    before = {n: (p.detach() + 0, p.stride(), storage(p)) for n, p in module.named_parameters()}
    allocator["gaps"] = [10, 20]
    compact.compact(module.parameters())
    assert all(torch.equal(p, before[n][0]) and p.stride() == before[n][1] for n, p in module.named_parameters())
    moved = [n for n, p in module.named_parameters() if storage(p) != before[n][2]]
    assert moved == ["0.weight", "0.bias"]  # the third got a new block, and stays
    assert allocator["given back"] == 1


def test_what_finds_a_gap_behind_it_stays(allocator):
    module = nn.Linear(2, 2, bias=False)
    allocator["gaps"] = [2000]
    place = storage(module.weight)
    compact.compact(module.parameters())
    assert storage(module.weight) == place


def test_what_others_look_at_stays(allocator):
    module = nn.Linear(2, 2)
    held = module.state_dict()["weight"]
    allocator["gaps"] = [10, 20]
    compact.compact(module.parameters())
    module.weight.data.fill_(3.0)
    assert (held == 3.0).all()
    block = torch.zeros(8)
    module.bias.data = block[:2]
    compact.compact([module.bias])
    module.bias.data.fill_(5.0)
    assert (block[:2] == 5.0).all()


def test_without_memory_it_ends(allocator, monkeypatch):
    def full(tensor):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(torch.Tensor, "clone", full)
    module = nn.Linear(2, 2)
    compact.compact(module.parameters())
    assert allocator["given back"] == 1
