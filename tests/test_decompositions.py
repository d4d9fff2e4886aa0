"""Decompositions are as near to float64 as torch's kernels."""

import pytest
import torch
from torch import nn

from diffusers_oneflow import decompositions, parity

from .replay.test_graph import graph_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def numbers(*shape, dtype, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def near(made, torchs, exact):
    assert made.dtype == torchs.dtype and made.shape == torchs.shape
    mine, theirs = parity.error(made, exact), parity.error(torchs, exact)
    assert mine.rms <= max(1.02 * theirs.rms, parity.FLOOR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "dim"), [((64, 32, 7), 0), ((64,), 0), ((64, 32, 7), 2), ((512, 9), 0), ((24, 8, 3, 3), 0)])
def test_weights_are_normed_as_by_torchs_kernel(shape, dim, dtype):
    sizes = [size if d == dim else 1 for d, size in enumerate(shape)]
    v, g = numbers(*shape, dtype=dtype, scale=3.0), numbers(*sizes, dtype=dtype, seed=1) + 4
    made, torchs = decompositions.weight_norm(v, g, dim), torch.ops.aten._weight_norm_interface(v, g, dim)
    exact = decompositions.weight_norm(v.double(), g.double(), dim)
    near(made[0], torchs[0], exact[0])
    torch.testing.assert_close(made[1], exact[1].float(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_is_as_by_torchs_kernel(affine, dtype):
    x, mean, variance = (numbers(4, 32, 9, 9, dtype=dtype), *(numbers(32, dtype=dtype, seed=s) for s in (1, 2)))
    ends = [numbers(32, dtype=dtype, seed=s) for s in (3, 4)] if affine else [None, None]
    variance = variance.abs() + 0.1
    made = decompositions.batch_norm(x, *ends, mean, variance, 0.1, 1e-5)
    wide = [None if t is None else t.double() for t in (mean, variance, *ends)]
    torchs, exact = (
        nn.functional.batch_norm(x, mean, variance, *ends),
        nn.functional.batch_norm(x.double(), *wide, False, 0.1, 1e-5),
    )
    near(made[0], torchs, exact)
    assert made[1].numel() == made[2].numel() == 0


class Normed(nn.Module):
    """Shows its weights, which are normed, and what a batch norm makes of them that has run for a while."""

    def __init__(self):
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64, bias=False))
        self.norm = nn.BatchNorm1d(64)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.2, 2.0)

    def forward(self, x):
        weights = self.linear(x)
        return weights, self.norm(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_graphs_use_them(dtype):
    torch.manual_seed(0)
    module, x = Normed().eval().to(dtype), torch.eye(64, dtype=dtype)
    graph = graph_of(module, x)
    with torch.no_grad():
        torchs = module(x)
        exact = module.double()(x.double())
    for mine, theirs, right in zip(graph([x]), torchs, exact):
        near(mine, theirs, right)
