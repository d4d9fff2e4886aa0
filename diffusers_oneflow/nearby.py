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
from .passes.base import HALVES

# Numbers of the calls that errors are taken over, the given one first; and of those that judge what failed by a little. It was
# picked by what is largest in the former, so these are others.
CALLS, MORE_CALLS = range(8), range(8, 40)
# Floats become up to so much smaller: far more than rounding, and no other inputs to a model.
_SHRINKS = 1 / 64
# Fewer tokens than these are no prompt.
_FEW = 3
# Dimensions of (n, channels, height, width).
_IMAGE = 4


def calls(tensors: Sequence[torch.Tensor], numbers: range = CALLS, tables: Sequence[int] = ()) -> Iterator[list[torch.Tensor]]:
    """`tensors`, number 0, and others of the same shapes, strides, offsets and dtypes, the same ones every time.

    In these, floats are up to 1/64 smaller; in an image of zeros, where there is nothing else, they are up to 1/64 from zero.
    Where a call has none but masks and single numbers, the ids of tokens, its first integers, are others: all but the first, the
    last and the largest of a row, which begin, pad and end a prompt; or, where fewer than three are left so, all of them. Of
    `MORE_CALLS` the first are others too: whatever follows, what a text encoder makes of the token that begins all prompts is the
    same in all of them, its largest error as well.

    Args:
        numbers: which of them; there are no others, if nothing could be changed.
        tables: how many rows the model's embeddings have; new ids are in all of those that may be the tokens'.
    """
    if 0 in numbers:
        yield list(tensors)
    floats = any(map(_is_free, tensors))
    ids = next((i for i, t in enumerate(tensors) if _is_row_of_ids(t)), -1)
    # An id that is in no table ends a GPU's process.
    tokens = min((size for size in tables if ids >= 0 and size > int(tensors[ids].max())), default=0)
    empty = not floats and not tokens and any(map(_is_empty_image, tensors))
    if not floats and not tokens and not empty:
        return
    for seed in filter(None, numbers):
        noise = torch.Generator().manual_seed(seed)
        if floats:
            yield [_shrunk(t, noise) for t in tensors]
        elif empty:
            yield [_filled(t, noise) for t in tensors]
        else:
            yield [_redrawn(t, tokens, noise, seed in CALLS) if i == ids else t for i, t in enumerate(tensors)]


def _is_free(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that may be others: no mask, no single number, nothing whose places share memory."""
    return _has_places(tensor) and len(tensor.unique()) > 2


def _has_places(tensor: torch.Tensor) -> bool:
    """Whether each of its floats, of which there are some, has a place of its own."""
    return tensor.is_floating_point() and tensor.numel() > 1 and torch.empty_like(tensor).stride() == tensor.stride()


def _shrunk(tensor: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    if not _is_free(tensor):
        return tensor
    share = 1 - _SHRINKS * torch.rand(tensor.shape, generator=noise).to(tensor.device)
    return _beside(tensor, tensor * share)


def _beside(tensor: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Other numbers with a tensor's strides, as far from the beginning of their memory: kernels may look at that."""
    memory = tensor.new_empty(tensor.storage_offset() + tensor.numel())
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(numbers)


def _is_empty_image(tensor: torch.Tensor) -> bool:
    """What a pipeline gives an image encoder where there is no image."""
    return _has_places(tensor) and tensor.ndim == _IMAGE and not tensor.any()


def _filled(tensor: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    if not _is_empty_image(tensor):
        return tensor
    numbers = _SHRINKS * (2 * torch.rand(tensor.shape, generator=noise) - 1)
    return _beside(tensor, numbers)


def _is_row_of_ids(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32) and tensor.ndim > 1 and tensor.numel() > 1 and tensor.is_contiguous()


def _redrawn(tensor: torch.Tensor, tokens: int, noise: torch.Generator, begin_alike: bool) -> torch.Tensor:
    made, largest = tensor.clone(), int(tensor.max())
    for row in made.view(-1, made.shape[-1]):
        others = (row != row[-1]) & (row != largest)
        free = (others & (row != row[0]) if begin_alike else others).nonzero().flatten()
        most = largest  # which may be the one that ends a prompt
        if len(free) < _FEW or largest < _FEW:
            free, most = torch.arange(len(row)), tokens
        row[free] = torch.randint(most, (len(free),), generator=noise).to(row)
    return made


@contextlib.contextmanager
def rounded(pipe: Any, seed: int) -> Iterator[None]:
    """Meanwhile all numbers that a pipeline's models give in a half type are one unit in the last place off, up or down."""
    noise = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype not in HALVES:
            return tensor
        bits = tensor.contiguous().view(torch.int16)
        up = 2 * torch.randint(2, tensor.shape, generator=noise, dtype=torch.int16).to(tensor.device) - 1
        # The next number, unless that is none.
        other = (bits + up).view(tensor.dtype)
        return torch.where((tensor != 0) & other.isfinite() & tensor.isfinite(), other, tensor)

    def hook(module: torch.nn.Module, args: Any, made: Any) -> Any:
        try:
            flat = signature.flatten(made)
        except signature.Unkeyable:
            return made
        return signature.rebuild(flat.spec, list(map(moved, flat.tensors)))

    hooks = [module.register_forward_hook(hook) for module in models(pipe).values()]
    try:
        yield
    finally:
        for held in hooks:
            held.remove()
