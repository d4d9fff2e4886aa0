"""OneFlow for single modules: `compile`, and the backend of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from . import engine
from .backend import attach, models
from .backend import detach as _detach
from .config import OneFlowConfig
from .errors import EngineUnavailable


def compile(module: torch.nn.Module, config: OneFlowConfig | None = None) -> torch.nn.Module:
    """Let `module` run as OneFlow graphs, in place, and return it; `detach` takes it back.

    Graphs are compiled at the first call of each kind: other shapes, dtypes or plain arguments make another. A VAE is attached at
    its encoder and decoder.

    Args:
        module: of any library, in float32, float16 or bfloat16, on the CPU or an NVIDIA GPU. Its weights stay where they are.
        config: options; by default what cannot run on OneFlow runs in torch, with a warning.

    Returns:
        `module` itself. Its calls take and give torch's tensors as before.

    Raises:
        TypeError: `module` is no nn.Module.
        EngineUnavailable: OneFlow cannot run here.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"compile takes a torch.nn.Module, not {type(module).__name__}")
    _require_engine()
    for path, part in models(module).items():
        attach(part, path, config or OneFlowConfig())
    return module


def detach(module: torch.nn.Module) -> torch.nn.Module:
    """Give a module that `compile` attached back to torch, and return it.

    Its graphs and all copies of weights are freed; its outputs are equal to the bit to before. A module that is not attached
    stays as it is.
    """
    for part in models(module).values():
        _detach(part)
    return module


def _require_engine() -> None:
    if reason := engine.refusal():
        raise EngineUnavailable(reason)
    engine.load()


class _Traced(torch.nn.Module):
    """A graph from torch.compile with its parameters as parameters again, not as inputs.

    torch.compile passes a module's parameters to its backend among the inputs; as inputs of a OneFlow
    graph they would be copied in every call.
    """

    def __init__(self, graph_module: torch.fx.GraphModule, example_inputs: list[Any]) -> None:
        super().__init__()
        # torch.compile hands over a module that writes its code when first called, which is a change of state.
        self.graph_module = torch.fx.GraphModule(graph_module, graph_module.graph)
        self._places = [i for i, v in enumerate(example_inputs) if isinstance(v, torch.nn.Parameter)]
        for i in self._places:
            self.register_parameter(f"input_{i}", example_inputs[i])

    def run(self, *inputs: torch.Tensor) -> Any:
        for i in self._places:
            if self._parameters[f"input_{i}"] is not inputs[i]:
                self._parameters[f"input_{i}"] = cast(torch.nn.Parameter, inputs[i])
        return self(*(v for i, v in enumerate(inputs) if i not in self._places))

    def forward(self, *inputs: torch.Tensor) -> Any:
        given = iter(inputs)
        count = len(self._places) + len(inputs)
        merged = [self._parameters[f"input_{i}"] if i in self._places else next(given) for i in range(count)]
        return self.graph_module(*merged)


def torch_compile_backend(
    graph_module: torch.fx.GraphModule, example_inputs: list[Any], *, options: dict[Any, Any] | None = None
) -> Callable[..., Any]:
    """The backend of ``torch.compile(module, backend="oneflow")``.

    Args:
        options: fields of `OneFlowConfig`.
    """
    _require_engine()
    traced = _Traced(graph_module, example_inputs).train(graph_module.training)
    attach(traced, "torch.compile", OneFlowConfig(**(options or {})))
    return traced.run
