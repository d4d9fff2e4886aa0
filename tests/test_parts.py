"""Modules that cannot be captured as a whole: their parts run on OneFlow."""

import copy
import pickle

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, explain
from diffusers_oneflow.backend import dispatcher_of
from diffusers_oneflow.errors import FallbackWarning, Unsupported


class Branching(torch.nn.Module):
    """What it does depends on a number that is known only when it runs."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 16)
        self.blocks = torch.nn.ModuleList(Inner() for _ in range(2))
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x) if x.sum() > 0 else -block(-x)
        return self.norm(x.unflatten(-1, (4, 4)))


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.narrow = torch.nn.Linear(16, 64), torch.nn.Linear(64, 16)

    def forward(self, x):
        return self.narrow(torch.nn.functional.silu(self.wide(x)))


class Counting(Inner):
    """Keeps count of its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


X = torch.randn(3, 16)


@pytest.fixture
def module():
    return Branching().eval()


def attached(module, **options):
    return diffusers_oneflow.compile(module, OneFlowConfig(progress=False, **options))


@torch.no_grad()
def test_parts_run_where_the_whole_cannot(module):
    expected = module(X)
    attached(module)
    with pytest.warns(FallbackWarning, match=r"Branching ran in torch.*3 of its parts ran on OneFlow, with 100% of its weights"):
        torch.testing.assert_close(module(X), expected)
    torch.testing.assert_close(module(-X), Branching.forward(module, -X))
    assert dispatcher_of(module).record.built == 0
    assert [dispatcher_of(m).record.built for m in (module.first, *module.blocks)] == [1, 1, 1]
    # Eight weights of 4,488 are not worth a graph.
    assert dispatcher_of(module.norm) is None


@torch.no_grad()
def test_explain_names_the_parts(module, capsys):
    attached(module)
    with pytest.warns(FallbackWarning):
        module(X)
    report = explain(module)
    assert {"Branching", "Branching.first", "Branching.blocks.0", "Branching.blocks.1"} == set(report)
    assert report.fallbacks == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 calls ran in torch (but 3 of its parts ran on OneFlow, with 100% of its weights)" in said
    assert "Branching.blocks.1" in said


@torch.no_grad()
def test_a_part_that_cannot_be_captured_has_parts_of_its_own(module):
    module.blocks[1] = Counting().eval()
    attached(module)
    with pytest.warns(FallbackWarning) as seen:
        module(X)
        module(X)
    # One warning, of the whole; the part counts as ever.
    assert len([w for w in seen if issubclass(w.category, FallbackWarning)]) == 1
    counting = module.blocks[1]
    assert counting.calls == 2
    assert dispatcher_of(counting).record.built == 0
    assert dispatcher_of(counting.wide).record.built == dispatcher_of(counting.narrow).record.built == 1


@torch.no_grad()
def test_changes_of_a_part_are_seen(module):
    attached(module)
    with pytest.warns(FallbackWarning):
        before = module(X)
    module.blocks[0].wide.weight.data.mul_(3)
    module.first = torch.nn.Linear(16, 16)
    after = module(X)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, copy.deepcopy(diffusers_oneflow.detach(module))(X))


@torch.no_grad()
def test_detaching_the_whole_detaches_its_parts(module):
    attached(module)
    with pytest.warns(FallbackWarning):
        module(X)
    part = dispatcher_of(module.first)
    diffusers_oneflow.detach(module)
    assert all(m.__dict__.get("_compiled_call_impl") is None and dispatcher_of(m) is None for m in module.modules())
    assert not part.entries


@torch.no_grad()
def test_copies_find_their_parts_again(module):
    attached(module)
    with pytest.warns(FallbackWarning):
        expected = module(X)
    other = copy.deepcopy(module)
    assert dispatcher_of(other) is not None and dispatcher_of(other.first) is None
    with pytest.warns(FallbackWarning, match="3 of its parts"):
        torch.testing.assert_close(other(X), expected)
    assert dispatcher_of(other.first) is not dispatcher_of(module.first)
    loaded = pickle.loads(pickle.dumps(module))
    assert dispatcher_of(loaded) is None and dispatcher_of(loaded.first) is None


@torch.no_grad()
def test_nothing_is_taken_apart_where_errors_are_asked_for_or_weights_are_released(module):
    attached(module, fallback="error")
    with pytest.raises(Unsupported):
        module(X)
    assert dispatcher_of(module.first) is None
    if diffusers_oneflow.engine.native().release_refusal():
        return
    attached(module, weights="release")
    with pytest.warns(FallbackWarning, match="not on OneFlow: "):
        module(X)
    assert dispatcher_of(module.first) is None


@torch.no_grad()
def test_a_part_whose_calls_always_differ_is_given_up(module):
    attached(module, max_graphs=2)
    with pytest.warns(FallbackWarning):
        for rows in range(1, 8):
            torch.testing.assert_close(module(X[:1].expand(rows, 16)), Branching.forward(module, X[:1].expand(rows, 16)))
    part = dispatcher_of(module.first)
    assert part.record.built == 4
    assert any("its calls still differ" in reason for reason in part.record.fallbacks)
