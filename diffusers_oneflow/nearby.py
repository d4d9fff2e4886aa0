"""Calls like a given one, and results that a dtype can hardly tell from given ones.

In a half type one call says little of a small model: of two kernels that round equally well, either may be 1.4 times as far
off as the other in the one call, and 0.7 times in the next. So errors are taken over several calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from . import signature
from .backend import models

CALLS = 8
# Floats become up to so much smaller: far more than rounding, and no other inputs to a model.
_SHRINKS = 1 / 64


def calls(tensors: Sequence[torch.Tensor], count: int = CALLS) -> Iterator[list[torch.Tensor]]:
    """`tensors`, and others of the same shapes, strides and dtypes, the same ones every time.

    In these, floats are up to 1/64 smaller. Where a call has none but masks and single numbers, ids of tokens change places
    in their row; its first and last value and the largest of all, which begin, pad and end a prompt, stay.

    Args:
        count: how many in all; one alone, if nothing could be changed.
    """
    yield list(tensors)
    change = _shrunk if any(map(_is_free, tensors)) else _shuffled
    for seed in range(1, count):
        noise = torch.Generator().manual_seed(seed)
        made = [change(t, noise) for t in tensors]
        if all(new is old for new, old in zip(made, tensors)):
            return
        yield made


def _is_free(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that may be others: no mask, no single number, nothing whose places share memory."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or torch.empty_like(tensor).stride() != tensor.stride():
        return False
    return len(tensor.unique()) > 2


def _shrunk(tensor: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    if not _is_free(tensor):
        return tensor
    share = 1 - _SHRINKS * torch.rand(tensor.shape, generator=noise).to(tensor.device)
    return torch.empty_like(tensor).copy_(tensor * share)


def _shuffled(tensor: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    if tensor.dtype not in (torch.int64, torch.int32) or tensor.ndim < 1 or torch.empty_like(tensor).stride() != tensor.stride():
        return tensor
    made, largest = tensor.clone(), tensor.max()
    moved = False
    for row in made.view(-1, made.shape[-1]) if made.is_contiguous() else []:
        free = ((row != row[0]) & (row != row[-1]) & (row != largest)).nonzero().flatten()
        row[free] = row[free[torch.randperm(len(free), generator=noise).to(free.device)]]
        moved |= len(free) > 1
    return made if moved else tensor


@contextlib.contextmanager
def rounded(pipe: Any, seed: int) -> Iterator[None]:
    """Meanwhile all numbers that a pipeline's models give in a half type are one unit in the last place off, up or down."""
    noise = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            return tensor
        signs = torch.randint(2, tensor.shape, generator=noise).to(tensor.device) * 2.0 - 1
        return (tensor * (1 + torch.finfo(tensor.dtype).eps * signs)).to(tensor.dtype)

    def hook(module: torch.nn.Module, args: Any, made: Any) -> Any:
        flat = signature.flatten(made)
        return signature.rebuild(flat.spec, list(map(moved, flat.tensors)))

    hooks = [module.register_forward_hook(hook) for module in models(pipe).values()]
    try:
        yield
    finally:
        for held in hooks:
            held.remove()
