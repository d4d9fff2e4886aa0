"""Whether two programs are the same but for sizes."""

from __future__ import annotations

from typing import Any

import torch

from .capture import Program
from .provenance import provenance


class Differs(Exception):
    """The module computes something else for these sizes, or does what only torch.export can follow; the message says what."""


def compare(known: Program, traced: Program, weights: dict[str, torch.Tensor]) -> None:
    """Raise `Differs` unless both are the same but for sizes; then the new one gets the old one's places in the source."""
    same: dict[torch.fx.Node, torch.fx.Node] = {}  # of the known program -> of the traced one
    before, after = ([n for n in p.graph.nodes if n.op == "call_function"] for p in (known, traced))
    if len(before) != len(after) or len(known.inputs) != len(traced.inputs) or len(known.outputs) != len(traced.outputs):
        raise Differs(f"{len(after)} ops, and not {len(before)}")
    old, new = ({n.name: n for n in p.graph.nodes if n.op == "placeholder"} for p in (known, traced))
    same.update((old[a], new[b]) for a, b in zip(known.inputs, traced.inputs))

    def placeholders(a: torch.fx.Node, b: torch.fx.Node) -> bool:
        if a.name in known.weights and b.name in traced.weights:
            return weights[known.weights[a.name]] is weights[traced.weights[b.name]]
        return a.name in known.constants and b.name in traced.constants

    def alike(a: Any, b: Any) -> bool:
        if isinstance(a, torch.fx.Node) and isinstance(b, torch.fx.Node):
            if a not in same and a.op == b.op == "placeholder" and placeholders(a, b):
                same[a] = b
            return same.get(a) is b
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            return len(a) == len(b) and all(map(alike, a, b))
        if type(a) is not type(b):
            return False
        if type(a) is float:
            return bool(a.hex() == b.hex())
        return type(a) is int or bool(a == b)

    for a, b in zip(before, after):
        fits = a.target is b.target and alike(a.args, b.args)
        if not fits or list(a.kwargs) != list(b.kwargs) or not all(alike(v, b.kwargs[k]) for k, v in a.kwargs.items()):
            raise Differs(f"{b.format_node()}, and not {a.format_node()}")
        if not _same_kind(a.meta["val"], b.meta["val"]):
            raise Differs(f"{b.name} is of another kind")
        same[a] = b
        b.meta.update(provenance(a))
    if [same.get(n) for n in known.outputs] != traced.outputs or known.result.spec != traced.result.spec:
        raise Differs("other outputs")
    for a, b in same.items():
        if a.op == "placeholder" and not _same_kind(a.meta["val"], b.meta["val"]):
            raise Differs(f"the tensor {b.name} is of another kind")


def _same_kind(a: Any, b: Any) -> bool:
    """As many dimensions, and the same dtype."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same_kind, a, b))
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.ndim == b.ndim and a.dtype == b.dtype
