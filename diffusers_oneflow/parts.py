"""The parts of a module that cannot be captured as a whole: those that can run on OneFlow, the rest in torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from .dispatch import Dispatcher

# A call costs about 0.3 ms: a part has to hold this share of the whole model's weights, or so many elements.
_SHARE, _ENOUGH = 0.01, 1 << 20
# Never called themselves, or by their items.
_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)


class Parts:
    """The attached submodules of a module that runs in torch.

    A part that cannot be captured either has parts of its own. Small ones stay with torch.

    Args:
        whole: the module's dispatcher.
        attach, detach: how modules are attached, with a dispatcher, and given back.
        least: elements that a part has to hold.
    """

    def __init__(
        self, whole: Dispatcher, attach: Callable[..., Any], detach: Callable[..., Any], least: int | None = None
    ) -> None:
        self._whole, self._detach = whole, detach
        module = cast(torch.nn.Module, whole.module)
        least = least or max(1, min(_ENOUGH, int(_SHARE * _elements(module))))
        self.dispatchers: list[Dispatcher] = []
        split = functools.partial(Parts, attach=attach, detach=detach, least=least)
        for name, child in _children(module, whole.path):
            if _elements(child) >= least and child.__dict__.get("_compiled_call_impl") is None:
                part = Dispatcher(child, name, whole.config, split, part=True)
                attach(child, part)
                self.dispatchers.append(part)

    @property
    def graphs(self) -> int:
        """Graphs that parts have built, parts of parts included."""
        return sum(d.record.built for d in self.all())

    def all(self) -> Iterator[Dispatcher]:
        """The dispatchers of the parts, and of their parts."""
        for dispatcher in self.dispatchers:
            yield dispatcher
            if dispatcher.parts is not None:
                yield from dispatcher.parts.all()

    def __str__(self) -> str:
        """What of the module runs on OneFlow nevertheless."""
        running = [d.module for d in self.all() if d.entries and d.module is not None]
        share = sum(map(_elements, running)) / max(1, _elements(cast(torch.nn.Module, self._whole.module)))
        return f"but {len(running)} of its parts ran on OneFlow, with {share:.0%} of its weights"

    def close(self) -> None:
        """Give the parts back to torch."""
        for dispatcher in self.dispatchers:
            if dispatcher.module is not None:
                self._detach(dispatcher.module)
        self.dispatchers = []


def _children(module: torch.nn.Module, path: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """The submodules that may be called: those of containers stand for them."""
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            yield from _children(child, f"{path}.{name}")
        else:
            yield f"{path}.{name}", child


def _elements(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
