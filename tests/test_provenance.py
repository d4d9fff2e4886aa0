"""A node says which module and line it comes from, and hands that on."""

import torch

from diffusers_oneflow.provenance import provenance, where

from .test_capture import program_of


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def nodes():
    program = program_of(Outer().eval(), torch.randn(2, 4))
    return [n for n in program.graph.nodes if n.op == "call_function"]


def test_a_node_knows_its_module_and_line():
    places = [where(node) for node in nodes()]
    linear = [place for place in places if place.startswith("layers.")]
    assert {place.split(", ")[0] for place in linear} == {"layers.0", "layers.1"} and "linear.py:" in linear[0]
    assert any(place.startswith("test_provenance.py:") for place in places)


def test_what_takes_its_place_comes_from_there():
    node = nodes()[0]
    other = torch.fx.Graph().call_function(torch.tanh)
    assert where(other) == "" and provenance(other) == {}
    other.meta.update(provenance(node))
    assert where(other) == where(node) != "" and set(other.meta) <= {"nn_module_stack", "stack_trace"}
