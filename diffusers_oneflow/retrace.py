"""Captures a module for other sizes than those it was exported for, in a tenth of the time.

torch.export takes seconds for a large UNet, and most of them go into bookkeeping for every op. Here the module's own code runs
again, on tensors without data, and only the ops that it calls are written down. That alone would not be trusted: the result
must be the exported program, op by op and argument by argument, and may differ from it in sizes alone - integers, which the
module's code has just computed for itself. Where it is not, torch.export has to do it.
"""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode

from .capture import Program, as_it_is, observed
from .exporting import TRACE_LOCK
from .same_program import Differs, compare
from .state import install_output_hooks, twin

_aten = torch.ops.aten
_META = torch.device("meta")
_GETTERS: Any = torch.Tensor
_ANSWERS = {
    _GETTERS.device.__get__: torch.device("cpu"), _GETTERS.is_meta.__get__: False, _GETTERS.is_cpu.__get__: True,
}  # fmt: skip
_CHECKS = "aten._assert_tensor_metadata.default"


def retrace(
    module: torch.nn.Module,
    tensors: list[Any],
    rebuild: Callable[..., Any],
    flatten: Callable[..., Any],
    known: list[Program],
    adapted: Callable[..., Any] = as_it_is,
) -> Program:
    """What `capture.capture` would give for `tensors`, with the help of what it gave for tensors of other sizes.

    Args:
        tensors, rebuild, flatten, adapted: as for `capture`.
        known: tidied (`tidy`) programs of the same module in the same state, for calls that differed in sizes alone.

    Raises:
        Differs: it takes torch.export; nothing has changed.
    """
    try:
        with TRACE_LOCK, torch.no_grad(), torch.backends.cudnn.flags(enabled=False), _as_in_export():
            traced = _trace(module, tensors, rebuild, flatten, adapted)
    except Differs:
        raise
    except Exception as error:  # whatever the module's code raises when its tensors hold nothing
        raise Differs(f"{type(error).__name__}: {error}") from error
    weights = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    reasons = []
    for program in known:
        try:
            compare(program, traced, weights)
            return traced
        except Differs as reason:
            reasons.append(str(reason))
    raise Differs("; ".join(reasons))


def tidy(program: Program) -> None:
    """Take out of a captured program what computes nothing, in place: the exporter's checks, and what nobody reads."""
    for node in reversed(program.graph.nodes):
        if str(node.target) == _CHECKS and not node.users:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()


class _Devices(TorchFunctionMode):
    """Tensors without data say that they are on the CPU, as those of the exporter do."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _ANSWERS:
            return _ANSWERS[function]
        return function(*args, **(kwargs or {}))


class _Recorder(ProxyTorchDispatchMode):
    """Writes down every op before torch takes it apart, and computes shapes alone."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None), "fake", pre_dispatch=True)
        self.calls: list[tuple[Any, ...]] = []
        # Tensors with data that the module's code holds or makes: id -> (the tensor, one without data in its place).
        self.real: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            raise Differs(f"{func} changes a tensor")
        if func is torch.ops.prim.device.default:
            return torch.device("cpu")
        if func is _aten.lift_fresh.default:
            func = _aten.lift_fresh_copy.default
        given, named = self._empty(args), self._empty(kwargs)
        if not any(isinstance(v, torch.Tensor) for v in given) and any(a.name == "device" for a in func._schema.arguments):
            named["device"] = _META
        with torch._C._DisablePythonDispatcher(), torch._C.DisableTorchFunction():
            made = func(*given, **named)
        self.calls.append((func, args, kwargs, made))
        return made

    def depends(self, tensor: torch.Tensor, given: Sequence[torch.Tensor], held: set[int]) -> bool:
        """Whether a tensor was computed from tensors that are `given`, whose id is in `held`, or of which nothing is known."""
        with torch._C.DisableTorchFunction():  # tensors say now what they are
            return self._depends(tensor, given, held)

    def _depends(self, tensor: torch.Tensor, given: Sequence[torch.Tensor], held: set[int]) -> bool:
        made = {key: (args, kwargs) for _, args, kwargs, result in self.calls for t in _tensors(result) for key in _keys(t)}
        roots, known = {id(t) for t in given} | held, {key for pair in self.real.items() for key in (pair[0], id(pair[1][1]))}
        stack, seen = [tensor], set()
        while stack:
            tensor = stack.pop()
            if id(tensor) in roots:
                return True
            source = next((made[key] for key in _keys(tensor) if key in made), None)
            if source is None and id(tensor) not in known:
                return True
            if source is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                stack += _tensors(source)
        return False

    def _empty(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value if value.device is _META or value.is_meta else self._stand_in(value)
        if isinstance(value, torch.device):
            return _META
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._empty, value)) if type(value) in (list, tuple) else value
        return {k: self._empty(v) for k, v in value.items()} if isinstance(value, dict) else value

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self.real:
            self.real[id(tensor)] = (tensor, _without_data(tensor))
        return self.real[id(tensor)][1]


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
    return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made


def _trace(
    module: torch.nn.Module,
    tensors: list[torch.Tensor],
    rebuild: Callable[..., Any],
    flatten: Callable[..., Any],
    adapted: Callable[..., Any],
) -> Program:
    module = twin(module)
    install_output_hooks(module)
    weights: dict[int, tuple[str, torch.Tensor]] = {}  # id of the tensor, or of the one in its place -> name, the latter
    for name, sub in module.named_modules():
        for table in (sub._parameters, sub._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    if id(tensor) not in weights:
                        known = (f"{name}.{key}".lstrip("."), _without_data(tensor))
                        weights[id(tensor)] = weights[id(known[1])] = known
                    table[key] = weights[id(tensor)][1]
    recorder = _Recorder()
    call, results, changed = observed(module, rebuild, flatten, adapted, recorder.depends)
    inputs = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=_META) for t in tensors]
    recorder.real.update({key: (empty, empty) for key, (_, empty) in weights.items()})
    with enable_python_dispatcher(), recorder, _Devices():
        outputs = call.forward(*inputs)
    if changed:
        raise Differs(f"forward changes {changed[0]}")
    program = _program(recorder, inputs, weights, outputs)
    result = results[0]
    result.tensors = []
    program.result = result
    tidy(program)
    return program


def _program(recorder: _Recorder, inputs: list[Any], weights: dict[Any, Any], outputs: tuple[Any, ...]) -> Program:
    graph = torch.fx.Graph()
    program = Program(graph, [], {}, {}, [], None)
    nodes: dict[Any, torch.fx.Node] = {}  # by id, and by place

    def placeholder(name: str, tensor: torch.Tensor, empty: torch.Tensor) -> str:
        node = nodes[id(tensor)] = nodes[id(empty)] = graph.placeholder(name)
        node.meta["val"] = empty
        return node.name

    program.inputs = [placeholder(f"input_{i}", tensor, tensor) for i, tensor in enumerate(inputs)]
    made = {key for _, _, _, result in recorder.calls for t in _tensors(result) for key in _keys(t)}
    for _, args, kwargs, _ in recorder.calls:
        for tensor in _tensors((args, kwargs)):
            key = id(tensor)
            if key in nodes or key in made or _place(tensor) in made:
                continue
            if key in weights:
                name, empty = weights[key]
                program.weights[placeholder(f"weight_{len(nodes)}", tensor, empty)] = name
            elif key in recorder.real:
                program.constants[placeholder(f"constant_{len(nodes)}", tensor, recorder.real[key][1])] = tensor.detach()
            else:
                raise Differs("it uses a tensor of unknown origin")
    for func, args, kwargs, result in recorder.calls:
        args, kwargs = (_mapped(part, nodes) for part in (args, kwargs))
        node = graph.call_function(func, args, kwargs)
        node.meta["val"] = result
        if isinstance(result, torch.Tensor):
            nodes[id(result)] = node
            nodes.setdefault(_place(result), node)
            continue
        if not isinstance(result, (list, tuple)) or not all(isinstance(t, torch.Tensor) for t in result):
            raise Differs(f"{func} gives no tensors")
        for position, tensor in enumerate(result):
            part = nodes[id(tensor)] = graph.call_function(operator.getitem, (node, position))
            part.meta["val"] = tensor
    program.outputs = [_node(t, nodes) for t in outputs]
    graph.output(tuple(program.outputs))
    return program


def _node(tensor: torch.Tensor, nodes: dict[Any, torch.fx.Node]) -> torch.fx.Node:
    node = nodes.get(id(tensor)) or nodes.get(_place(tensor))
    if node is None:
        raise Differs("it uses a tensor of unknown origin")
    return node


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What tells whether two tensors are one: torch hands the results of factories on in other objects."""
    if not tensor.is_meta:
        return (id(tensor),)
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _keys(tensor: torch.Tensor) -> tuple[Any, ...]:
    return id(tensor), _place(tensor)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _mapped(value: Any, nodes: dict[Any, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return _node(value, nodes)
    if isinstance(value, (list, tuple)):
        items = [_mapped(v, nodes) for v in value]
        return tuple(items) if isinstance(value, tuple) else items
    return {k: _mapped(v, nodes) for k, v in value.items()} if isinstance(value, dict) else value


class _Here:
    """True in the thread that made it, until `end`; false in all others, which run meanwhile as ever."""

    def __init__(self) -> None:
        self._owner: int | None = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self._owner

    def end(self) -> None:
        self._owner = None


@contextlib.contextmanager
def _as_in_export() -> Iterator[None]:
    """What code may ask for while it is exported; torch keeps it for all threads. Code that asks for more than whether it is
    true finds another object than True, and at worst gives another program than the exported one, which is then not used."""
    flags: Any = torch.compiler
    before = flags._is_compiling_flag, flags._is_exporting_flag
    here = flags._is_compiling_flag = flags._is_exporting_flag = _Here()
    try:
        yield
    finally:
        here.end()  # an export of another thread may put it back later
        flags._is_compiling_flag, flags._is_exporting_flag = before
