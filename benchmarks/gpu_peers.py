"""Who is compared on a GPU, each on a module of its own; all of them read one set of weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import diffusers_oneflow

from .gpu_cases import Case
from .gpu_device import Device

PEERS = {
    "oneflow": "OneFlow's plan as one CUDA graph, by this package",
    "torch": "torch eager; convolutions channels last",
    "torch-graph": "the same, captured as a CUDA graph",
    "reduce-overhead": "torch.compile(mode='reduce-overhead'); convolutions channels last",
    "max-autotune": "torch.compile(mode='max-autotune'); convolutions channels last",
}
COMPILED = ("reduce-overhead", "max-autotune")
CONFIG = diffusers_oneflow.OneFlowConfig(cuda=True, progress=False, cache=None, fallback="error")


def sharing(module: nn.Module) -> nn.Module:
    """A copy of `module` whose parameters and buffers are those of `module`: large models fit once only."""
    held = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in held})


def build(peer: str, case: Case, module: nn.Module, given: dict[str, Any], device: Device) -> Callable[[], torch.Tensor]:
    """What runs one call of the case as `peer` does, after its first.

    Args:
        module: on the device, the peer's own; its filters channels last.
        given: the arguments of the call.
    """
    if peer == "oneflow":
        diffusers_oneflow.compile(module, CONFIG)
    call = case.call(module)
    if peer in COMPILED:
        call = marked(device.compiled(call, peer))

    def step() -> torch.Tensor:
        result: torch.Tensor = call(**given)[0]
        return result

    made = device.captured(step) if peer == "torch-graph" else step
    made()
    return made


def marked(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled` so that its CUDA graphs may overwrite what the call before has made."""

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*args, **kwargs)

    return call


def built(module: nn.Module) -> dict[str, Any]:
    """Seconds by stage, planned bytes and kernels of what this package has built for `module`.

    Raises:
        RuntimeError: a call of it ran in torch.
    """
    report = diffusers_oneflow.explain(module, show=False)
    if report.fallbacks:
        raise RuntimeError(f"{report.fallbacks} calls ran in torch")
    graphs = [graph for component in report.values() for graph in component.graphs]
    kernels: dict[str, int] = {}
    for graph in graphs:
        for counts in graph.kernels.values():
            for name, count in counts.items():
                kernels[name] = kernels.get(name, 0) + count
    return {
        "seconds": [graph.seconds for graph in graphs],
        "planned_bytes": sum(graph.activation_bytes for graph in graphs),
        "unplanned_bytes": sum(graph.unplanned_bytes for graph in graphs),
        "kernels": kernels,
    }
