"""The strengths of LoRA adapters as inputs of a graph: another strength then needs no other graph.

peft keeps them as floats in a dictionary `scaling` of each of its layers, which `set_adapters` and a hot-swap write to, and
diffusers multiplies them by the `scale` of a call's attention arguments for as long as the call takes.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Where the wrapper lives that takes `scale` from a call (diffusers.utils.peft_utils.apply_lora_scale).
_WRAPPER = ("diffusers.utils.peft_utils", "kwargs_name")


@dataclass(frozen=True)
class Strength:
    """One entry of a layer's `scaling`.

    Attributes:
        layer: the layer's name in the module.
        adapter: the key.
        value: a float, or the tensor that peft puts in its place for hot-swaps, which every graph reads itself.
        scalable: whether the `scale` of a call reaches it; that of an embedding's adapter it does not.
    """

    layer: str
    adapter: str
    value: float | torch.Tensor
    scalable: bool

    @property
    def number(self) -> float:
        """The float; 1.0 for a tensor."""
        return self.value if type(self.value) is float else 1.0


def is_adapted(module: torch.nn.Module) -> bool:
    """Whether a module is a layer of peft, of LoRA or another kind."""
    base = sys.modules.get("peft.tuners.tuners_utils")
    return base is not None and isinstance(module, base.BaseTunerLayer)


def found(name: str, module: torch.nn.Module) -> list[Strength] | None:
    """The strengths of a module's own adapters, if it is a layer of LoRA whose strengths graphs can take as inputs, or None."""
    scaling: Any = module.__dict__.get("scaling")
    adapters: Any = module._modules.get("lora_A")
    if type(scaling) is not dict or adapters is None or not is_adapted(module):
        return None
    if not all(type(v) is float or (isinstance(v, torch.Tensor) and v.ndim == 0) for v in scaling.values()):
        return None
    return [Strength(name, adapter, value, adapter in adapters) for adapter, value in scaling.items()]


class Groups:
    """Strengths of one structure that have been equal so far: an input of the graph for each group, not for each layer.

    Groups are split when their members differ, and never joined again, so that few graphs come of many settings.
    """

    def __init__(self) -> None:
        self._latest: tuple[int, ...] = ()
        self._numbers: dict[tuple[int, ...], int] = {}

    def sort(self, strengths: list[Strength]) -> Sorted:
        """The strengths by group; split where they differ now."""
        before = self._latest or (0,) * len(strengths)
        alike = [(old, s.adapter, s.scalable, type(s.value), s.number.hex()) for old, s in zip(before, strengths)]
        numbers = {kind: i for i, kind in enumerate(dict.fromkeys(alike))}
        self._latest = tuple(numbers[kind] for kind in alike)
        return Sorted(strengths, self._latest, self._numbers.setdefault(self._latest, len(self._numbers)))


class Sorted:
    """Strengths and their groups.

    Attributes:
        number: stands for the way in which they are grouped.
        layout: that way and all of the strengths but their values, the same in every process.
    """

    def __init__(self, strengths: list[Strength], groups: tuple[int, ...], number: int) -> None:
        self._strengths, self._groups, self.number = strengths, groups, number
        self.layout = tuple(
            (s.layer, s.adapter, s.scalable, type(s.value) is float, group) for s, group in zip(strengths, groups)
        )
        firsts = {group: i for i, group in reversed(list(enumerate(groups)))}
        self._firsts = [strengths[firsts[group]] for group in range(len(firsts))]

    def __len__(self) -> int:
        return len(self._firsts)

    def values(self, factor: float) -> list[float]:
        """One number for each group: the strength times the call's factor; of tensors, which graphs read, the factor alone."""
        return [s.number * (factor if s.scalable else 1.0) for s in self._firsts]

    @contextlib.contextmanager
    def put(self, module: torch.nn.Module, values: Sequence[Any]) -> Iterator[None]:
        """Let the layers of `module` have these strengths, one for each group, tensors or floats, and then their own."""
        layers: dict[str, Any] = {s.layer: module.get_submodule(s.layer) for s in self._strengths}
        before = {name: dict(layer.scaling) for name, layer in layers.items()}
        try:
            for s, group in zip(self._strengths, self._groups):
                value, scaling = values[group], layers[s.layer].scaling
                own = scaling[s.adapter] if isinstance(s.value, torch.Tensor) else None
                if own is not None:
                    scaling[s.adapter] = own * value if s.scalable else own
                else:
                    # To each layer its own: some models multiply it in place.
                    scaling[s.adapter] = value.clone() if isinstance(value, torch.Tensor) else value
            yield
        finally:
            for name, layer in layers.items():
                layer.scaling.clear()
                layer.scaling.update(before[name])


def take_factor(module: torch.nn.Module, kwargs: dict[Any, Any]) -> tuple[dict[Any, Any], float]:
    """A call's keywords without the `scale` by which diffusers multiplies all strengths, and that number (1.0: none)."""
    name = _keyword(type(module).forward)
    options = kwargs.get(name) if name is not None else None
    if type(options) is not dict or type(options.get("scale")) not in (float, int):
        return kwargs, 1.0
    rest = {k: v for k, v in options.items() if k != "scale"}
    return {**kwargs, name: rest}, float(options["scale"])


@functools.cache
def _keyword(forward: Any) -> str | None:
    """The argument in which a model's `forward` looks for `scale`, if it is wrapped by diffusers for that."""
    if getattr(forward, "__globals__", {}).get("__name__") != _WRAPPER[0]:
        return None
    cells = dict(zip(forward.__code__.co_freevars, forward.__closure__ or ()))
    return cells[_WRAPPER[1]].cell_contents if _WRAPPER[1] in cells else None


def after(module: torch.nn.Module, factor: float) -> None:
    """What diffusers leaves behind after a call with a `scale` of 0: strengths as adapters were loaded with."""
    if factor == 0:
        from diffusers.utils.peft_utils import unscale_lora_layers

        unscale_lora_layers(module, 0.0)
