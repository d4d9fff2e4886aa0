"""Where the nodes of a captured graph come from: the module, and the line of its code."""

from __future__ import annotations

from typing import Any

import torch

_KEYS = ("nn_module_stack", "stack_trace")


def provenance(node: torch.fx.Node) -> dict[str, Any]:
    """What torch.export notes of it in a node's ``meta``, for the ``meta`` of nodes that take the node's place."""
    return {key: node.meta[key] for key in _KEYS if key in node.meta}


def where(node: torch.fx.Node) -> str:
    """The module path and source line that a node comes from, as far as torch.export knows them."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    for prefix in ("L['self'].module", "L['self']", "module"):
        path = path.removeprefix(prefix).lstrip(".")
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File")]
    source = ""
    if lines:
        file, line = lines[-1].removeprefix('File "').split('", line ')
        source = f"{file.rsplit('/', 1)[-1]}:{line.split(',')[0]}"
    return ", ".join(part for part in (path, source) if part)
