"""Complex numbers as pairs of real ones: every op against torch, and inputs and constants."""

import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, parity
from tests.passes.test_passes import Function

PAIRS = torch.randn(2, 3, 4, 2)
TABLE = torch.polar(torch.ones(6, 4), torch.randn(6, 4))


def as_complex(x):
    return torch.view_as_complex(x.contiguous())


@pytest.mark.parametrize(
    "function",
    [
        lambda c: c * TABLE[:3], lambda c: TABLE[None, 1:4] * c, lambda c: c * c.real, lambda c: c * 2.5, lambda c: c + c * c,
        lambda c: c - c.conj(), lambda c: c.reshape(6, 4).unsqueeze(1), lambda c: c.expand(2, 2, 3, 4).flatten(0, 1),
        lambda c: torch.cat([c, c], dim=-1), lambda c: torch.stack([c, 2 * c], dim=-1), lambda c: c[:, -1], lambda c: c[..., 1:],
        lambda c: c.transpose(-1, -2), lambda c: c.permute(2, 0, 1), lambda c: c.repeat(2, 1, 2), lambda c: c.split(2, -1)[1],
        lambda c: c.unbind(1)[2], lambda c: c.flip(-1), lambda c: c[:, torch.tensor([2, 0])],
        lambda c: torch.nn.functional.pad(c, (1, 0, 0, 2)), lambda c: torch.complex(c.imag, c.real),
        lambda c: torch.polar(c.real.abs(), c.imag), lambda c: c[:1].squeeze(0).to(torch.complex64) * 2,
        lambda c: torch.nn.utils.rnn.pad_sequence([c[0], c[1, :2]], batch_first=True),
        lambda c: c * TABLE[c.real[0, :, 0].long().clamp(0, 5)], lambda c: c.index_select(-1, torch.tensor([3, 1])),
    ],
)  # fmt: skip
def test_ops(function):
    found = parity.component(Function(lambda x: torch.view_as_real(function(as_complex(x)))).eval(), (PAIRS,), {})
    assert found.passed, found


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.conj(), lambda t: t.T.contiguous().T, lambda t: t[:, :1].expand(6, 4)])
@torch.no_grad()
def test_complex_inputs_come_in_as_pairs(make):
    """Lumina's rotary embeddings, which its pipeline makes."""
    module = Function(lambda x, table: torch.view_as_real(as_complex(x) * table[:3].unsqueeze(0)))
    table = make(TABLE)
    expected = module(PAIRS, table)
    diffusers_oneflow.compile(module, OneFlowConfig(fallback="error"))
    torch.testing.assert_close(module(PAIRS, table), expected)
    torch.testing.assert_close(module(PAIRS, 2 * table), 2 * expected)


@torch.no_grad()
@pytest.mark.parametrize("function", [lambda x: torch.view_as_real(as_complex(x).exp()), as_complex])
def test_what_is_not_known_runs_in_torch_and_says_why(function):
    module = diffusers_oneflow.compile(Function(function))
    with pytest.warns(diffusers_oneflow.errors.FallbackWarning, match="complex"):
        assert torch.equal(module(PAIRS), function(PAIRS))
