"""Gives back the memory that parameters leave behind when others of their block have moved."""

from collections.abc import Iterable

import torch

# References to the memory of a parameter that nobody else looks at: its own, and that of whoever asks.
_ALONE = 2


def compact(parameters: Iterable[torch.Tensor]) -> None:
    """Move parameters from the end of the GPU's memory into gaps before it, and give back what is empty then.

    Torch's allocator gives back whole blocks only. Parameters that were put side by side (`layout`) leave gaps in the blocks of
    others, which nothing as large as a graph's memory fits into: 92 MB of Stable Diffusion's UNet.

    Args:
        parameters: on one GPU; those that share their memory with another tensor stay where they are.
    """
    own = [p for p in parameters if p.untyped_storage().nbytes() == p.nbytes and _references(p) == _ALONE]
    for parameter in sorted(own, key=torch.Tensor.data_ptr, reverse=True):
        before = torch.cuda.memory_reserved(parameter.device)
        try:
            moved = parameter.data.clone()
        except torch.OutOfMemoryError:  # no gap is large enough, and neither is the rest
            break
        # In a new block it would be no gain.
        if moved.data_ptr() < parameter.data_ptr() and torch.cuda.memory_reserved(parameter.device) <= before:
            parameter.data = moved
        del moved
    torch.cuda.empty_cache()


def _references(tensor: torch.Tensor) -> int:
    count: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count
