"""Casts of weights to half types become placeholders, and nothing else does."""

import pytest
import torch

from tests.passes.test_passes import rewritten


class Casts(torch.nn.Module):
    """Reads its weight in `to`, three times, and its bias in float32 and float64."""

    def __init__(self, dtype, to):
        super().__init__()
        self.linear, self.to_dtype = torch.nn.Linear(6, 6, dtype=dtype), to

    def forward(self, x):
        weight, bias = self.linear.weight, self.linear.bias
        made = x.to(self.to_dtype) @ weight.to(self.to_dtype)
        return made, weight.to(self.to_dtype), weight.to(self.to_dtype).float() + bias, bias.double()


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
def test_a_cast_is_a_placeholder_of_the_same_weight(to):
    reports, _, program = rewritten(Casts(torch.float32, to), torch.randn(2, 6), native=True)
    assert reports["CastWeights"].applied == 1  # equal casts are one before
    names = [name for name, qualified in program.weights.items() if qualified.endswith("linear.weight")]
    held, cast = (next(n for n in program.graph.nodes if n.name == name) for name in names)
    assert not held.users and cast.meta["val"].dtype == to and program.outputs[1] is cast
    missed = "a weight of torch.float32 on cpu is cast to torch.float64 in every call"
    assert any(missed in miss for miss in reports["CastWeights"].near_misses)


@pytest.mark.parametrize("dtype, to", [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)])
def test_others_stay(dtype, to):
    reports, _, _ = rewritten(Casts(dtype, to), torch.randn(2, 6), native=True)
    assert reports["CastWeights"].applied == 0 and len(reports["CastWeights"].near_misses) >= 2
    assert any("cast" in miss for miss in reports["CastWeights"].near_misses)


def test_a_cast_of_an_input_is_none():
    reports, _, _ = rewritten(lambda x: x.bfloat16().sin(), torch.randn(2, 6), native=True)
    assert not reports["CastWeights"].applied and not reports["CastWeights"].near_misses
