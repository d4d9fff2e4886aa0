"""Weights that move on a GPU: graphs read them where they are, and are built anew only a few times."""

import torch
from torch import nn

from diffusers_oneflow import OneFlowConfig, dispatch
from diffusers_oneflow.backend import attach, detach, dispatcher_of
from diffusers_oneflow.replay import devices
from diffusers_oneflow.structure import Structure


def move(module, names=None):
    """Give parameters other memory, as offloading does with all of them."""
    for name, parameter in module.named_parameters():
        if names is None or name in names:
            parameter.data = parameter.data.clone()


def test_a_module_is_moved_where_all_its_weights_are():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = Structure(module)
    move(module, ["0.weight", "0.bias", "1.weight"])
    assert not Structure(module).is_moved(before)
    move(module, ["1.bias"])
    assert Structure(module).is_moved(before)


def test_places_that_others_have_now_are_moved_too():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    before = Structure(module)
    first, second = module[0].weight.data, module[1].weight.data
    module[0].weight.data, module[1].weight.data = second, first
    assert Structure(module).is_moved(before)


def on_a_gpu(monkeypatch):
    """Let structures say that they are on a GPU that can be used."""
    make = Structure.__init__

    def made(self, module):
        make(self, module)
        self.device = torch.device("cuda")

    monkeypatch.setattr(Structure, "__init__", made)
    monkeypatch.setattr(devices, "refusal", lambda device, config: None)


def test_after_some_moves_a_module_stays_in_torch(monkeypatch):
    on_a_gpu(monkeypatch)
    module = nn.Linear(2, 3)
    attach(module, "linear", OneFlowConfig(progress=False, cache=None))
    dispatcher = dispatcher_of(module)
    try:
        said = []
        for _ in range(dispatch._MOVES + 2):
            said.append(dispatcher._refusal(dispatcher._structure_now(module), []))
            move(module)
        assert said[:-1] == [None] * (dispatch._MOVES + 1)
        assert said[-1] == "its weights were moved more than 2 times, and a graph on cuda reads them where they are"
        dispatcher.close()
        assert dispatcher._refusal(dispatcher._structure_now(module), []) is None
    finally:
        detach(module)


def test_weights_that_are_changed_are_no_move(monkeypatch):
    on_a_gpu(monkeypatch)
    module = nn.Linear(2, 3)
    attach(module, "linear", OneFlowConfig(progress=False, cache=None))
    try:
        for _ in range(5):
            move(module, ["weight"])
            structure = dispatcher_of(module)._structure_now(module)
        assert dispatcher_of(module)._refusal(structure, []) is None
    finally:
        detach(module)


def test_what_is_laid_out_is_no_move(monkeypatch):
    on_a_gpu(monkeypatch)
    module = nn.Conv2d(3, 4, 3, bias=False)
    attach(module, "conv", OneFlowConfig(progress=False, cache=None))
    try:
        # Held, or what comes next might lie where it did.
        dispatcher, before = dispatcher_of(module), module.weight.data
        dispatcher._structure_now(module)
        dispatcher._laid_out(module)
        assert module.weight.data_ptr() != before.data_ptr() and dispatcher._moves == 0
    finally:
        dispatcher.close()
        detach(module)
