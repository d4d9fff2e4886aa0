"""What ``torch.autocast`` means for a graph: its casts are ops of the program, which is captured under it."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch.amp.autocast_mode import is_autocast_available

# Whose matrices autocast casts.
_CAST = (torch.nn.Linear, torch.nn.Bilinear, torch.nn.modules.conv._ConvNd, torch.nn.MultiheadAttention, torch.nn.RNNBase)


@dataclass(frozen=True)
class Autocast:
    """That autocast is on for the device of a model.

    Attributes:
        device: its kind, as torch names it.
        dtype: of products, convolutions and attention.
    """

    device: str
    dtype: torch.dtype

    def on(self) -> contextlib.AbstractContextManager[object]:
        """A context to capture in. Without torch's table of weights that were cast already, which traces must not fill."""
        return torch.autocast(self.device, self.dtype, cache_enabled=False)

    def refusal(self, module: torch.nn.Module, kernels: str = "native") -> str | None:
        """Why a module stays in torch: on a GPU weights of another dtype would be cast again in every call.

        On the CPU the kernel pack has copies of them, which are as the weights are (`passes.cast_weights`).

        Args:
            kernels: of `OneFlowConfig`.
        """
        half = self.dtype != torch.float16 or torch.ops.mkldnn._is_mkldnn_fp16_supported()
        if self.device == "cpu" and kernels == "native" and half:
            return None
        for path, sub in module.named_modules():
            for name, weight in sub.named_parameters(recurse=False) if isinstance(sub, _CAST) else ():
                if weight.dtype != self.dtype and weight.is_floating_point() and weight.ndim > 1:
                    wanted, held = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, weight.dtype))
                    where = f"{path}.{name}".removeprefix(".")
                    if self.device == "cpu":
                        return f"torch.autocast is on, and {kernels} kernels do not cast {where} of {held} to {wanted} here"
                    return f"torch.autocast is on, and would cast {where} of {held} in every call: load the model in {wanted}"
        return None


def current(device: torch.device) -> Autocast | None:
    """Autocast as the calling thread has it on `device`, if it is on there."""
    # Weights that are offloaded have a device that autocast does not know (meta).
    kind = device.type if is_autocast_available(device.type) else "cpu"
    return Autocast(kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def on(state: Autocast | None) -> contextlib.AbstractContextManager[object]:
    """A context with autocast as `state` says."""
    return contextlib.nullcontext() if state is None else state.on()


def off(state: Autocast | None) -> contextlib.AbstractContextManager[object]:
    """A context without it: what computes a graph casts nothing by itself."""
    return contextlib.nullcontext() if state is None else torch.autocast(state.device, enabled=False)


def spell_out(graph: torch.fx.Graph, state: Autocast) -> torch.fx.Node | None:
    """Write down the casts that autocast does inside of ops that torch takes apart: a second trace takes them apart without it.

    Args:
        graph: traced under `state` above these casts; what its nodes make has the dtypes that autocast gives it.

    Returns:
        The first node whose op does other casts inside than of all that goes into it, if there is one.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or not _is_taken_apart(node.target, state.device):
            continue
        if _is_resized(node.target, state.device):
            # The first trace takes it apart already. Whatever reads it knows no better dtype, and finds another now.
            _cast_all(graph, torch.float32, node)
            continue
        expected = _dtypes(node.meta["val"])
        if _dtypes(_without(node, state)) == expected:
            continue
        floats = [dtype for dtype in expected if dtype is not None and dtype.is_floating_point]
        if floats:
            _cast_all(graph, floats[0], node)
        if _dtypes(_without(node, state)) != expected:
            found: torch.fx.Node = node
            return found
    return None


def _is_taken_apart(target: Any, device: str) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return False
    has = functools.partial(torch._C._dispatch_has_kernel_for_dispatch_key, target.name())
    return has("CompositeImplicitAutograd") and not has("Autocast" + device.upper())


def _is_resized(target: torch._ops.OpOverload, device: str) -> bool:
    """Whether it stands for a resize that autocast does in float32."""
    name = target.name().partition(".")[0]
    return "upsample" in name and torch._C._dispatch_has_kernel_for_dispatch_key(name, "Autocast" + device.upper())


def _cast_all(graph: torch.fx.Graph, dtype: torch.dtype, node: torch.fx.Node) -> None:
    with graph.inserting_before(node):
        node.args, node.kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), functools.partial(_cast, graph, dtype))


def _without(node: torch.fx.Node, state: Autocast) -> Any:
    """What a node makes without autocast, of fake tensors."""
    args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta["val"])
    target: Any = node.target
    with torch.no_grad(), off(state):
        return target(*args, **kwargs)


def _cast(graph: torch.fx.Graph, dtype: torch.dtype, node: torch.fx.Node) -> torch.fx.Node:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
        return node
    made = graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
    made.meta = {**node.meta, "val": value.to(dtype)}
    return made


def _dtypes(value: Any) -> list[torch.dtype | None]:
    return [getattr(made, "dtype", None) for made in torch.utils._pytree.tree_leaves(value)]
