"""Single modules: compile, detach, and torch.compile."""

import pytest
import torch

from diffusers_oneflow import compile, detach
from diffusers_oneflow.backend import dispatcher_of


@torch.no_grad()
def test_compile_works_in_place_and_detach_takes_it_back(block):
    x = torch.randn(1, 3, 8, 8)
    before = block(x)
    assert compile(block) is block
    torch.testing.assert_close(block(x), before, rtol=1e-5, atol=1e-5)
    assert dispatcher_of(block).record.built == 1
    assert detach(block) is block
    assert torch.equal(block(x), before)
    assert dispatcher_of(block) is None


def test_only_modules_are_taken():
    with pytest.raises(TypeError, match="not function"):
        compile(lambda x: x)


def test_torch_compile_refuses_an_attached_module(block):
    compile(block)
    with pytest.raises(RuntimeError, match="runs on OneFlow and cannot be compiled by torch as well"):
        block.compile()
    detach(block).compile()


@torch.no_grad()
def test_the_backend_of_torch_compile(block, monkeypatch):
    from diffusers_oneflow import dispatch

    built = []
    original = dispatch.Dispatcher._build
    monkeypatch.setattr(dispatch.Dispatcher, "_build", lambda *a: built.append(original(*a)) or built[-1])
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="oneflow", options={"fallback": "error"})
    x = torch.randn(1, 3, 8, 8)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
    assert len(built) == 1
    block[0].weight.mul_(2.0)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
