"""Runs a torch module on OpenVINO in place: one compiled model per set of shapes, converted at its first call."""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


def attach(module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Let calls of `module` (with float32 weights) run on OpenVINO.

    Args:
        dtype: what OpenVINO computes in (its inference precision): float32, bfloat16 or float16.
    """
    module.forward = Converted(module, module.forward, dtype)


@dataclass
class _Model:
    request: Any
    result: list[Any]  # leaves of the module's result: the place of an output, or a value that was none
    spec: pytree.TreeSpec


class Converted:
    """Stands in the place of a module's ``forward``.

    Args:
        module: whose weights it reads.
        forward: torch's own.
        dtype: OpenVINO's inference precision.
    """

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any], dtype: torch.dtype) -> None:
        self._module, self._forward, self._dtype = module, forward, dtype
        self._models: dict[tuple[Any, ...], _Model] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        tensors = [leaves[i].contiguous() for i in places]
        others = tuple((type(leaf), leaf) for leaf in leaves if not isinstance(leaf, torch.Tensor))
        key = (spec, others, tuple((tuple(t.shape), t.dtype) for t in tensors))
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = self._convert(leaves, spec, places, tensors)
        # Inputs are read where torch has them; results are copied, since the next call overwrites them.
        found = model.request.infer([t.detach().numpy() for t in tensors], share_inputs=True, share_outputs=False)
        outputs = list(found.to_tuple())
        leaves = [torch.from_numpy(outputs[leaf]) if isinstance(leaf, _Output) else leaf for leaf in model.result]
        return pytree.tree_unflatten(leaves, model.spec)

    def _convert(self, leaves: list[Any], spec: pytree.TreeSpec, places: list[int], tensors: list[torch.Tensor]) -> _Model:
        openvino = _openvino()
        adapter = _Adapter(self._module, self._forward, leaves, spec, places).eval()
        with torch.no_grad(), warnings.catch_warnings():
            # The tracer warns of every branch on a shape; shapes are fixed here.
            warnings.simplefilter("ignore")
            try:
                model = openvino.convert_model(adapter, example_input=tuple(tensors))
            except Exception as traced:
                try:
                    model = openvino.convert_model(torch.export.export(adapter, tuple(tensors)))
                except Exception as exported:
                    message = f"OpenVINO takes neither a trace ({_line(traced)}) nor an export ({_line(exported)})"
                    raise RuntimeError(message) from None
        # An input that the module does not use is gone from the model: then nothing tells which are left.
        if len(model.inputs) != len(tensors):
            raise RuntimeError(f"OpenVINO's model has {len(model.inputs)} inputs, the call {len(tensors)} tensors")
        model.reshape({i: list(t.shape) for i, t in enumerate(tensors)})
        assert adapter.spec is not None  # it was called to be converted
        compiled = openvino.Core().compile_model(model, "CPU", _options(self._dtype))
        return _Model(compiled.create_infer_request(), adapter.result, adapter.spec)


class _Output(int):
    """The place of an output among OpenVINO's."""


class _Adapter(torch.nn.Module):
    """Tensors in, a tuple of tensors out: what OpenVINO can convert; it remembers how the real result is made of them."""

    def __init__(
        self, module: torch.nn.Module, forward: Callable[..., Any], leaves: list[Any], spec: pytree.TreeSpec, places: list[int]
    ) -> None:
        super().__init__()
        self.module = module
        self._call, self._leaves, self._spec, self._places = forward, leaves, spec, places
        self.result: list[Any] = []
        self.spec: pytree.TreeSpec | None = None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        found, self.spec = pytree.tree_flatten(self._call(*args, **kwargs))
        outputs = [leaf for leaf in found if isinstance(leaf, torch.Tensor)]
        numbers = iter(range(len(outputs)))
        self.result = [_Output(next(numbers)) if isinstance(leaf, torch.Tensor) else leaf for leaf in found]
        return tuple(outputs)


def _options(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        # Otherwise one thread per physical core.
        "ENABLE_HYPER_THREADING": True,
    }


def _openvino() -> Any:
    # Its converter reports every use to its vendor unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: it is not there
    import openvino

    return openvino


def _line(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"
