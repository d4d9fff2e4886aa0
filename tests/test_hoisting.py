"""What depends on the prompt or the timestep alone is computed when these change, and only then."""

import copy

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig
from diffusers_oneflow.backend import dispatcher_of
from tests.conftest import tiny_unet


class Conditioned(torch.nn.Module):
    """x (n, 8) under a prompt (n, m, 4) and a timestep (): attention-like, and one value that needs both."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = torch.nn.Linear(8, 8), torch.nn.Linear(4, 8), torch.nn.Linear(4, 8)
        self.t, self.both = torch.nn.Linear(1, 8), torch.nn.Linear(8, 8)

    def forward(self, x, t, prompt):
        k, v, t = self.k(prompt), self.v(prompt), self.t(t.reshape(1, 1))
        weights = torch.softmax(self.q(x)[:, None] @ k.transpose(1, 2), -1)
        return (weights @ v)[:, 0] + t + self.both(k.mean(1) * t)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return diffusers_oneflow.compile(Conditioned().eval(), OneFlowConfig(fallback="error", hoist=True))


def runs(module) -> list[int]:
    """How often each prologue of the newest graph ran."""
    return [part.runs for part in dispatcher_of(module).entries[-1].hoisted]


def same(module, *args):
    torch.testing.assert_close(module(*args), module._call_impl(*args), rtol=1e-5, atol=1e-5)


def arguments(t=1.0):
    return torch.randn(2, 8), torch.tensor(t), torch.randn(2, 5, 4)


@torch.no_grad()
def test_each_part_runs_when_its_inputs_change(module):
    x, t, prompt = arguments()
    for _ in range(3):
        same(module, torch.randn_like(x), t, prompt)
    assert runs(module) == [1, 1, 1], "prompt, timestep, and what needs both"
    same(module, x, torch.tensor(2.0), prompt)
    assert sorted(runs(module)) == [1, 2, 2]
    same(module, x, t, torch.randn_like(prompt))
    assert sorted(runs(module)) == [2, 2, 3], "the first timestep's results were kept"
    assert dispatcher_of(module).record.built == 1


@torch.no_grad()
def test_it_is_content_that_counts(module):
    x, t, prompt = arguments()
    same(module, x, t, prompt)
    same(module, x, t.clone(), prompt.clone())
    same(module, x, t, prompt.transpose(0, 1).contiguous().transpose(0, 1))
    assert runs(module) == [1, 1, 1]
    prompt.data[0, 0, 0] += 1.0  # the same tensor, the same version
    same(module, x, t, prompt)
    prompt.numpy()[1] = 0.0
    same(module, x, t, prompt)
    assert sorted(runs(module)) == [1, 3, 3]


@torch.no_grad()
def test_zero_with_another_sign_is_other_content(module):
    x, t, prompt = arguments(0.0)
    same(module, x, t, prompt)
    same(module, x, -t, prompt)
    assert sorted(runs(module)) == [1, 2, 2]


@pytest.mark.parametrize("name", ["k.weight", "k.bias", "t.weight", "both.bias"])
@pytest.mark.parametrize("weights", ["shared", "packed"])
@torch.no_grad()
def test_a_write_to_a_weight_is_seen(name, weights):
    torch.manual_seed(0)
    module = diffusers_oneflow.compile(Conditioned().eval(), OneFlowConfig(fallback="error", weights=weights, hoist=True))
    args = arguments()
    same(module, *args)
    before = module(*args)
    module.get_parameter(name).data += 1.0
    same(module, *args)
    assert not torch.equal(module(*args), before)
    assert dispatcher_of(module).record.built == 1


@torch.no_grad()
def test_noise_is_never_hoisted():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x, prompt):
            return x + self.linear(prompt + torch.rand_like(prompt))

    module = diffusers_oneflow.compile(Noisy().eval(), OneFlowConfig(hoist=True))
    x, prompt = torch.randn(2, 4), torch.randn(2, 4)
    assert not torch.equal(module(x, prompt), module(x, prompt))


@torch.no_grad()
def test_hoisted_or_not_gives_the_same():
    unet = tiny_unet()
    args = torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 6, 16)
    results = []
    for hoist in (True, False):
        module = diffusers_oneflow.compile(copy.deepcopy(unet), OneFlowConfig(fallback="error", hoist=hoist))
        results.append(module(*args).sample)
        assert len(dispatcher_of(module).entries[0].hoisted) == (2 if hoist else 0)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_graphs_of_two_shapes_keep_results_of_their_own(module):
    small, large = arguments(), (torch.randn(3, 8), torch.tensor(3.0), torch.randn(3, 5, 4))
    for args in (small, large, small, large):
        same(module, *args)
    parts = {id(part): part for entry in dispatcher_of(module).entries for part in entry.hoisted}
    # Both take a timestep of the same shape: of that they share what is kept, one run for each value.
    assert sorted(part.runs for part in parts.values()) == [1, 1, 1, 1, len({float(small[1]), float(large[1])})]


@torch.no_grad()
def test_graphs_of_other_sizes_share_prologues(unet):
    """One for each set of inputs, which goes with the last of its graphs, and is right for every call."""
    diffusers_oneflow.compile(unet, OneFlowConfig(fallback="error", hoist=True, cache=None, max_graphs=2))
    words = torch.randn(2, 5, 16)
    sizes = ((8, 8), (8, 16), (16, 8))
    for step in range(2):
        for height, width in sizes:
            args = torch.randn(2, 4, height, width), torch.tensor(7 + step), words + height
            torch.testing.assert_close(unet(*args).sample, unet._call_impl(*args).sample, rtol=1e-5, atol=1e-5)
    first, second = dispatcher_of(unet).entries
    assert first.hoisted and all(a is b and a.users == 2 for a, b in zip(first.hoisted, second.hoisted))
    assert first.hoisted[0].runs >= 2
    unet.time_embedding.linear_1.weight.mul_(2)
    torch.testing.assert_close(unet(*args).sample, unet._call_impl(*args).sample, rtol=1e-5, atol=1e-5)
    parts = first.hoisted
    first.close()
    assert all(part.graph._finalizer.alive for part in parts)
    second.close()
    assert not any(part.graph._finalizer.alive for part in parts)


@torch.no_grad()
def test_other_shapes_of_the_prompt_share_none(unet):
    diffusers_oneflow.compile(unet, OneFlowConfig(fallback="error", hoist=True, cache=None))
    for words in (5, 6):
        args = torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, words, 16)
        torch.testing.assert_close(unet(*args).sample, unet._call_impl(*args).sample, rtol=1e-5, atol=1e-5)
    first, second = dispatcher_of(unet).entries
    assert sum(a is b for a in first.hoisted for b in second.hoisted) == 1  # that of the timestep
