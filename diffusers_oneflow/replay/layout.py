"""Filters of convolutions in the order that a device's kernels read, as torch's own ``to(memory_format=...)`` has it."""

import torch

_LAST = torch.channels_last


class FilterLayout:
    """The filters of a module, channels last: the same numbers and shapes, in new memory.

    Graphs read parameters where they are, so that no write to them is ever missed: a copy for the kernels would miss those
    through ``.data``.

    Args:
        module: on its device.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        filters = [m.weight for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        self._moved = [p for p in filters if p.is_contiguous() and not p.is_contiguous(memory_format=_LAST)]
        for parameter in self._moved:
            parameter.data = parameter.data.contiguous(memory_format=_LAST)

    def undo(self) -> None:
        """As they were, those that nobody has replaced meanwhile."""
        for parameter in self._moved:
            if parameter.ndim == 4 and parameter.is_contiguous(memory_format=_LAST):
                parameter.data = parameter.data.contiguous()
        self._moved = []
