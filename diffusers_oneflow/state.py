"""What a model's submodules hold, and which of it their code changes while it is traced."""

from __future__ import annotations

import collections
import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx.experimental import proxy_tensor

from .contents import CONTAINERS, DEPTH, OPAQUE, OWN, TABLES, contents, snapshot

# Tables of tensors: torch.export swaps fake ones in, and reports changed buffers itself. And what this package keeps there.
_NOT_HELD = frozenset((*TABLES, *OWN))
# How often one container is looked into, where several places hold it.
_TIMES = 4


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """A deep copy of a module, not attached to OneFlow, whose tensors are the module's own."""
    memo: dict[Any, Any] = {id(value): value for value in _held(module).values() if isinstance(value, torch.Tensor)}
    for sub in module.modules():
        memo.update((id(value), value) for value in (*sub._parameters.values(), *sub._buffers.values()))
        memo[id(sub.__dict__.get("_oneflow_dispatcher"))] = None
    return copy.deepcopy(module, memo)


def depends(tensor: torch.Tensor, given: Sequence[torch.Tensor], held: set[int]) -> bool:
    """Whether the code that is being traced computed `tensor` from tensors that are `given` to it, or whose id is in `held`."""
    mode: Any = proxy_tensor.get_proxy_mode()
    nodes = [_node(t, mode.tracer) for t in (tensor, *given)] if mode is not None else [None]
    stack, seen = [nodes[0]] if nodes[0] is not None else [], set()
    while stack:
        node = stack.pop()
        if node in nodes[1:] or (node.op == "get_attr" and id(getattr(mode.tracer.root, str(node.target))) in held):
            return True
        if node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return False


def _node(tensor: torch.Tensor, tracer: Any) -> torch.fx.Node | None:
    slot = proxy_tensor.get_proxy_slot(tensor, tracer, None)
    return slot.proxy.node if slot is not None else None


def install_output_hooks(module: torch.nn.Module) -> None:
    """What models of transformers do in the first call that asks for hidden states, which would look like a state.

    A model with a model inside that has its hooks already is left alone: transformers would install them there twice.
    """
    if "transformers.utils.output_capturing" not in sys.modules:
        return
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    for sub in list(module.modules()):
        installed = any(getattr(inner, "_output_capturing_hooks_installed", False) for inner in sub.modules())
        if isinstance(sub, PreTrainedModel) and not installed:
            maybe_install_capturing_hooks(sub)


def watch(module: torch.nn.Module, computed: Callable[..., Any] = depends) -> Callable[[Sequence[torch.Tensor]], list[str]]:
    """Remember what all submodules hold; the returned function names the attributes that their code has changed since.

    A module that stores something when it runs (a cache, a counter, an attention processor's map) is one that no graph
    can stand for. A new tensor is a state only if it was computed from the call's own tensors, which the returned
    function takes while they are traced, or from what it replaces: what is made without them, a table of frequencies
    or the weight that the hook of a weight norm computes, every call would make again.

    Args:
        computed: tells that in the way of `depends`.
    """
    before = _held(module)

    def changes(given: Sequence[torch.Tensor]) -> list[str]:
        after = _held(module)
        new = [place for place, value in after.items() if place not in before or not _same(value, before[place])]
        gone = [place for place in before if place not in after]
        replaced = {id(before[place]) for place in (*new, *gone) if place in before}
        kept = [p for p in new if not isinstance(after[p], torch.Tensor) or computed(after[p], given, replaced)]
        # Where a list of tensors now stands in the place of None, `kept` has decided.
        gone = [p for p in gone if not any(other[: len(p)] == p for other in new)]
        return [".".join(map(str, place[:2])).lstrip(".") for place in (*kept, *gone)]

    return changes


def _held(module: torch.nn.Module) -> dict[tuple[Any, ...], object]:
    """All that a module and its submodules hold: ``(name of the submodule, attribute, key or attribute in it...)`` -> value."""
    held: dict[tuple[Any, ...], object] = {}
    seen: collections.Counter[int] = collections.Counter()
    for name, sub in module.named_modules():
        attributes = {k: v for k, v in sub.__dict__.items() if k not in _NOT_HELD}
        for key, value in (*attributes.items(), *sub._modules.items()):
            held.update(_values((name, key), value, seen, DEPTH))
    return held


def _values(
    place: tuple[Any, ...], value: Any, seen: collections.Counter[int], depth: int
) -> Iterator[tuple[tuple[Any, ...], object]]:
    """``(place, value)`` of what stands at `place`: of containers what they hold, since torch.export puts equal ones in their
    place, and of plain objects (attention processors) both themselves and, the first time, what they hold."""
    container = isinstance(value, CONTAINERS)
    if container and not value:
        yield place, type(value)  # empty
    elif not container or not depth:
        yield place, value
    # A container that many hold is followed some times only: each level of such ones would multiply the work.
    if not depth or isinstance(value, OPAQUE) or seen[id(value)] >= (_TIMES if container else 1):
        return
    inner = contents(value)
    seen[id(value)] += 1
    if not container:
        with contextlib.suppress(ValueError):  # too large: such a module is not captured
            if not inner and (read := snapshot(value)) is not None:
                yield (*place, "content"), repr(read())
    for key, held in inner:
        yield from _values((*place, key), held, seen, depth - 1)


def _same(a: Any, b: Any) -> bool:
    """Plain values by content, floats to the bit; all else by identity."""
    if type(a) is type(b) and isinstance(a, (int, float, str, bytes, set, frozenset)):
        return repr(a) == repr(b) if isinstance(a, float) else a == b
    return a is b
