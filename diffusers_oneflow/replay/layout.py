"""Parameters in the order that a device's kernels read: the same numbers and shapes, in new memory.

Graphs read parameters where they are, so that no write to them is ever missed: a copy for the kernels would miss those through
``.data``.
"""

from collections.abc import Iterable

import torch

_LAST = torch.channels_last
# Layers of one parent that read the same tensor, and layers that do so all over a model.
_BESIDE = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"), ("q_proj", "k_proj", "v_proj"))
_EVERYWHERE = ("time_emb_proj",)
# Of one block of memory for several parameters: while they move it is there twice.
_MOST_BYTES = 128 << 20


class Layout:
    """Filters of convolutions channels last, as torch's own ``to(memory_format=...)`` has it, and weights of linear layers that
    read the same tensor one after the other.

    Args:
        module: on its device.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        filters = [m.weight for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        self._filters = [p for p in filters if p.is_contiguous() and not p.is_contiguous(memory_format=_LAST)]
        for parameter in self._filters:
            parameter.data = parameter.data.contiguous(memory_format=_LAST)
        self._joined: list[torch.Tensor] = []
        try:
            for layers in _siblings(module):
                for parameters in ([layer.weight for layer in layers], [layer.bias for layer in layers]):
                    self._join([p for p in parameters if p is not None])
        except torch.OutOfMemoryError:
            self.undo()
            raise

    def undo(self) -> None:
        """As they were, those that nobody has replaced meanwhile."""
        for parameter in self._filters:
            if parameter.ndim == 4 and parameter.is_contiguous(memory_format=_LAST):
                parameter.data = parameter.data.contiguous()
        for parameter in self._joined:
            if parameter.untyped_storage().nbytes() > parameter.nbytes:
                parameter.data = parameter.data.clone()
        self._filters, self._joined = [], []

    def _join(self, parameters: list[torch.Tensor]) -> None:
        if len(parameters) < 2:
            return
        block = torch.cat([p.data.flatten() for p in parameters])
        start = 0
        for parameter in parameters:
            parameter.data = block[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        self._joined += parameters


def _siblings(module: torch.nn.Module) -> Iterable[list[torch.nn.Linear]]:
    """Linear layers to put side by side, each once, in groups of one width, dtype and at most `_MOST_BYTES`."""
    groups: dict[object, list[torch.nn.Linear]] = {}
    uses: dict[int, int] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        name, parent = path.rpartition(".")[2], path.rpartition(".")[0]
        if type(layer) is not torch.nn.Linear or type(layer.weight) is not torch.nn.Parameter:
            continue
        uses[id(layer.weight)] = uses.get(id(layer.weight), 0) + 1
        kind = next((kind for kind in _BESIDE if name in kind), None)
        if kind is None and name not in _EVERYWHERE:
            continue
        query = getattr(module.get_submodule(parent), "to_q", None)
        # The keys and values of a prompt: its width is not that of the queries, and all layers read it.
        of_prompt = name in ("to_k", "to_v") and isinstance(query, torch.nn.Linear) and query.in_features != layer.in_features
        place = parent if kind is not None and not of_prompt else None
        groups.setdefault((kind or name, of_prompt, place, layer.in_features, layer.weight.dtype, layer.bias is None), []).append(
            layer
        )
    for layers in groups.values():
        part: list[torch.nn.Linear] = []
        for layer in layers:
            if uses[id(layer.weight)] > 1 or not layer.weight.is_contiguous():
                continue
            if part and sum(known.weight.nbytes for known in (*part, layer)) > _MOST_BYTES:
                yield part
                part = []
            part.append(layer)
        yield part
