"""Values across the border between a script that speaks OneFlow and libraries that speak torch.

`inward` turns OneFlow's tensors, dtypes, devices, sizes and generators into torch's, `outward` the first
four back, in lists, tuples, dicts and model outputs too. Tensors keep their memory (dlpack), except those of
types that dlpack has not (bool). `crossing` puts both around one function. What needs no translation comes
back as the object that it was.

Gradients do not cross: tensors arrive detached.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]  # it is there, and documented

from . import engine, generators, no_gpu

# OneFlow has no other tensors; int16, complex and float8 of torch have no counterpart.
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool")


@functools.cache
def _to_torch() -> dict[Any, Any]:
    flow = engine.flow()
    return {getattr(flow, name): getattr(torch, name) for name in _DTYPES}


@functools.cache
def _to_flow() -> dict[Any, Any]:
    return {theirs: ours for ours, theirs in _to_torch().items()}


def inward(value: Any) -> Any:
    """`value` with torch's objects in place of OneFlow's; itself if there are none.

    Raises:
        TypeError: a OneFlow tensor is spread over several processes (global).
    """
    flow = engine.flow()
    if isinstance(value, flow.Tensor):
        return _tensor_inward(value)
    if isinstance(value, flow.dtype):
        return _to_torch().get(value, value)
    if isinstance(value, flow.device):
        return torch.device(value.type, value.index) if value.type != "cpu" else torch.device("cpu")
    if isinstance(value, flow._oneflow_internal.Generator):
        return generators.twin(value)
    if isinstance(value, flow.Size):
        return torch.Size(value)
    return _rebuilt(value, inward)


def outward(value: Any) -> Any:
    """`value` with OneFlow's tensors, dtypes and devices in place of torch's; itself if there are none.

    Raises:
        TypeError: OneFlow has no tensor of that type (complex, int16, float8, sparse, quantized).
    """
    if isinstance(value, torch.Tensor):
        return _tensor_outward(value)
    if isinstance(value, torch.dtype):
        return _to_flow().get(value, value)
    if isinstance(value, torch.device):
        return engine.flow().device(str(value)) if value.type in ("cpu", "cuda") else value
    return _rebuilt(value, outward)


def _rebuilt(value: Any, translate: Callable[..., Any]) -> Any:
    """A list, tuple, dict or model output of translated values; the same object if nothing changed."""
    if isinstance(value, list | tuple):
        made = [translate(v) for v in value]
        if all(a is b for a, b in zip(made, value)):
            return value
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if isinstance(value, dict | collections.UserDict):
        items = {k: translate(v) for k, v in value.items()}
        if all(v is value[k] for k, v in items.items()):
            return value
        if dataclasses.is_dataclass(value):  # the outputs of models and pipelines, attributes and items at once
            output = copy.copy(value)
            for key, item in items.items():
                output[key] = item
            return output
        if isinstance(value, collections.UserDict):  # what tokenizers and image processors return
            same = copy.copy(value)
            same.data = items
            return same
        return type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: translate(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        changed = {k: v for k, v in fields.items() if v is not getattr(value, k)}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _tensor_inward(tensor: Any) -> torch.Tensor:
    flow = engine.flow()
    if tensor.is_global:
        raise TypeError(f"a global OneFlow tensor of shape {tuple(tensor.shape)} cannot be given to torch: call .to_local()")
    tensor = tensor.detach()
    if tensor.dtype == flow.bool:
        return from_dlpack(flow.to_dlpack(tensor.to(flow.uint8))).bool()
    return from_dlpack(flow.to_dlpack(tensor))


def _tensor_outward(tensor: torch.Tensor) -> Any:
    flow = engine.flow()
    if tensor.dtype not in _to_flow() or tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(
            f"OneFlow has no tensors of {tensor.dtype} and {tensor.layout}: convert this output before it is returned"
        )
    tensor = tensor.detach().resolve_neg()
    if tensor.is_cuda and no_gpu.refusal() is not None:
        tensor = tensor.cpu()  # its first op there would end the process
    if tensor.numel() == 0:
        return flow.empty(*tensor.shape, dtype=_to_flow()[tensor.dtype])
    if tensor.dtype == torch.bool:
        return flow.from_dlpack(to_dlpack(tensor.to(torch.uint8))).to(flow.bool)
    # OneFlow reads past the end of an expanded tensor.
    return flow.from_dlpack(to_dlpack(tensor if 0 not in tensor.stride() else tensor.contiguous()))


def speaks_oneflow(names: dict[Any, Any]) -> bool:
    """True for the globals of a module in which `torch` is OneFlow: by ``import oneflow as torch``, or under mock torch."""
    spoken = names.get("torch")
    if spoken is not None and spoken is sys.modules.get("oneflow"):
        return True
    mock = sys.modules.get("diffusers_oneflow.mock")
    return mock is not None and bool(mock.is_script(names))


def crossing(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of a library that speaks torch, for callers of both kinds.

    The result is OneFlow's if any OneFlow tensor or generator came in, or the caller speaks OneFlow; else, for a
    caller that speaks torch, nothing is changed.
    """

    @functools.wraps(function)
    def crossed(*args: Any, **kwargs: Any) -> Any:
        given, named = inward(args), inward(kwargs)
        speaks = speaks_oneflow(sys._getframe(1).f_globals)
        if not speaks and given is args and named is kwargs:
            return function(*args, **kwargs)
        back = speaks or _has_flow(args) or _has_flow(kwargs)
        if back:
            named = {k: _callback(v) if k.startswith("callback") and callable(v) else v for k, v in named.items()}
        with _modes():
            result = function(*given, **named)
        return outward(result) if back else result

    marked: Any = crossed
    marked._crosses = True
    return crossed


def _has_flow(value: Any) -> bool:
    """Whether a OneFlow tensor or generator is among the arguments; a dtype or device alone asks for no OneFlow results."""
    flow = engine.flow()
    if isinstance(value, list | tuple):
        return any(map(_has_flow, value))
    if isinstance(value, dict | collections.UserDict):
        return any(map(_has_flow, value.values()))
    return isinstance(value, flow.Tensor | flow._oneflow_internal.Generator)


def called_back(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a script's own class, which libraries call: they give it OneFlow's objects and get torch's back."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if speaks_oneflow(sys._getframe(1).f_globals):
            return method(self, *args, **kwargs)
        return _returned(method(self, *outward(args), **outward(kwargs)), (args, kwargs))

    return called


def _callback(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the script, called back by a pipeline: what it gets is OneFlow's, what it returns becomes torch's."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return _returned(function(*outward(args), **outward(kwargs)), (args, kwargs))

    return called


def _returned(value: Any, given: Any) -> Any:
    """What a script returns to a library: torch's, and on the GPU of what it was given, which came to the CPU for OneFlow."""
    device = _gpu_of(given) if no_gpu.refusal() is not None else None

    def back(value: Any) -> Any:
        if isinstance(value, engine.flow().Tensor):
            return inward(value).to(device)
        made = _rebuilt(value, back)
        return inward(value) if made is value else made

    return inward(value) if device is None else back(value)


def _gpu_of(value: Any) -> torch.device | None:
    """The GPU of the first tensor there that is on one."""
    if isinstance(value, torch.Tensor):
        return value.device if value.is_cuda else None
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next(filter(None, map(_gpu_of, items)), None)


@contextlib.contextmanager
def _modes() -> Iterator[None]:
    """OneFlow's modes as torch's while a library runs; OneFlow's own autocast is off in it: graphs have their dtypes."""
    flow = engine.flow()
    with contextlib.ExitStack() as stack:
        if not flow.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        if flow.is_autocast_enabled():
            off = flow._oneflow_internal.AutoCastMode("cuda", flow.float16, False, True)
            stack.callback(lambda held: None, off)
        yield


def namespace(cls: type, inherited: bool) -> dict[Any, Any]:
    """The public methods of `cls` as crossings, and its `device` and `dtype` as the caller speaks of them.

    Args:
        inherited: with those of its bases, for a subclass; else only its own, to be set on itself.
    """
    names = dir(cls) if inherited else list(cls.__dict__)
    made: dict[str, Any] = {}
    for name in names:
        if name.startswith("_") and name != "__call__":
            continue
        static = inspect.getattr_static(cls, name)
        if isinstance(static, classmethod | staticmethod):
            if not hasattr(static.__func__, "_crosses"):
                made[name] = type(static)(crossing(static.__func__))
        elif isinstance(static, property):
            if name in ("device", "dtype"):
                made[name] = _spoken(static)
        elif inspect.isfunction(static) and not hasattr(static, "_crosses"):
            made[name] = crossing(static)
    return made


def _spoken(original: property) -> property:
    def read(self: Any) -> Any:
        value = cast(Any, original.fget)(self)
        return outward(value) if speaks_oneflow(sys._getframe(1).f_globals) else value

    return property(read, original.fset, original.fdel, original.__doc__)
