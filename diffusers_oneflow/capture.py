"""From a call of a torch module to a graph of ATen ops."""

import contextlib
import copy
import linecache
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.export.graph_signature import InputKind, OutputKind

from .errors import Unsupported

TRACE_LOCK = threading.RLock()


@dataclass
class Program:
    """One call of a module as a flat graph over tensors.

    Attributes:
        graph: ATen ops in execution order; its placeholders are `inputs`, `weights` and `constants`.
        inputs: placeholder names, in the order of the tensors that the call takes.
        weights: placeholder name -> qualified name of a parameter or buffer of the module.
        constants: placeholder name -> tensor that the module's code made while it was traced.
        outputs: per output tensor the node that makes it.
        result: what `forward` returned, flattened (`signature.Flat`), for rebuilding it.
        seconds: seconds by stage of capture.
    """

    graph: torch.fx.Graph
    inputs: list[str]
    weights: dict[str, str]
    constants: dict[str, torch.Tensor]
    outputs: list[torch.fx.Node]
    result: object
    seconds: dict[str, float] = field(default_factory=dict)


class FlatCall(torch.nn.Module):
    """The module as a function from tensors to a tuple of tensors: what torch.export can take for any signature."""

    def __init__(self, module: torch.nn.Module, rebuild: Callable, finish: Callable):
        super().__init__()
        self.module = module
        self.rebuild, self.finish = rebuild, finish

    def forward(self, *tensors):
        args, kwargs = self.rebuild(tensors)
        before = [(container, _items(container)) for container in _containers((args, kwargs))]
        # Not module(...): that would come back to the dispatcher.
        result = self.module.forward(*args, **kwargs)
        # What is only taken out (a ControlNet's results, popped one by one) is no result that the caller waits for.
        if any(not any(item is old for old in items) for container, items in before for item in _items(container)):
            raise Unsupported("a stateful module", "forward puts something into a list or dict that it is given")
        return self.finish(result)


def _items(container) -> list:
    return list(container.values() if isinstance(container, dict) else container)


def _containers(value):
    """The lists and dicts in a call's arguments."""
    if isinstance(value, (list, dict)):
        yield value
    if isinstance(value, (list, tuple, dict)):
        for item in _items(value):
            yield from _containers(item)


def capture(
    module: torch.nn.Module,
    tensors: list[torch.Tensor],
    rebuild: Callable,
    flatten: Callable,
    is_lowered: Callable[[str], bool],
) -> Program:
    """Trace ``module.forward`` on `tensors` with torch.export.

    Args:
        tensors: the call's tensors; only shapes and dtypes matter.
        rebuild: from a sequence of tensors to ``(args, kwargs)`` of the call.
        flatten: from what forward returned to a `signature.Flat`.
        is_lowered: whether an ATen op can be lowered as it is; others are decomposed first.

    Raises:
        Unsupported: the module changes its buffers or its inputs, or returns something that is no tensor of its own.
        Exception: whatever torch.export or the module's own code raises.
    """
    results, changed = [], []
    # torch.export swaps fake tensors into the module's tables, and the module's code may store what it
    # computes: neither must be seen by other threads, or stay. So a copy is traced that shares all tensors.
    module = twin(module)
    changes = watch(module)

    def finish(result):
        # Here, since torch.export puts back some attributes itself before it returns.
        changed.extend(changes())
        results.append(flatten(result))
        return tuple(results[-1].tensors)

    call = FlatCall(module, rebuild, finish)
    call.training = module.training
    with torch.no_grad(), _alone(), _forgetful():
        exported = torch.export.export(call, tuple(tensors), strict=False)
        if changed:
            raise Unsupported("a stateful module", f"forward changes {', '.join(sorted(set(changed))[:3])}")
        # Decomposing traces everything a second time (4 s for Stable Diffusion's UNet), so it is done only on need.
        if not all(map(is_lowered, _ops(exported.graph))) or _mutates(exported.graph):
            _spell_out_diagonals(exported.graph)
            table = torch.export.default_decompositions()
            exported = exported.run_decompositions({op: how for op, how in table.items() if not is_lowered(str(op))})
    return _program(exported, results[0])


def _ops(graph: torch.fx.Graph):
    return (op_name(n) for n in graph.nodes if n.op == "call_function" and not is_bookkeeping(n))


def _mutates(graph: torch.fx.Graph) -> bool:
    nodes = (n.target for n in graph.nodes if n.op == "call_function")
    return any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in nodes)


def _spell_out_diagonals(graph: torch.fx.Graph):
    """Write ``x.fill_diagonal_(v)`` of a matrix as a fill under a mask: torch cannot take its own as a function of tensors."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target is not aten.fill_diagonal_.default or node.args[0].meta["val"].ndim != 2 or len(node.args) > 2:
            continue
        x, fill = node.args
        with graph.inserting_before(node):
            rows, columns = (graph.call_function(aten.arange.default, (size,)) for size in x.meta["val"].shape)
            column = graph.call_function(aten.unsqueeze.default, (rows, 1))
            mask = graph.call_function(aten.eq.Tensor, (column, columns))
            made = graph.call_function(aten.masked_fill_.Scalar, (x, mask, fill))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def op_name(node: torch.fx.Node) -> str:
    """``aten.silu.default`` for a node that calls an op."""
    return str(node.target)


def is_bookkeeping(node: torch.fx.Node) -> bool:
    """True for nodes that compute nothing: picking from a tuple, the exporter's checks of metadata."""
    return op_name(node) in ("<built-in function getitem>", "aten._assert_tensor_metadata.default")


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


def _program(exported: torch.export.ExportedProgram, result) -> Program:
    inputs, weights, constants = [], {}, {}
    for spec in exported.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            weights[name] = spec.target.removeprefix("module.")
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            constants[name] = exported.constants[spec.target].detach()
        else:
            raise Unsupported(str(spec.kind), "only tensors can be captured")
    for spec in exported.graph_signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            raise Unsupported("a stateful module", f"forward changes {spec.target or spec.arg.name} in place")
    for node in exported.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if any(isinstance(size, torch.SymInt) for size in shape):
            raise Unsupported(f"{op_name(node)}{f' in {place}' if (place := where(node)) else ''}", "its shape is data-dependent")
    output = next(n for n in exported.graph.nodes if n.op == "output")
    outputs = list(output.args[0])
    if not all(isinstance(o, torch.fx.Node) for o in outputs):
        raise Unsupported("an output", "forward returns something that is no tensor")
    return Program(exported.graph, inputs, weights, constants, outputs, result)


@contextlib.contextmanager
def _alone():
    """Keep torch.export out of other threads: it patches nn.Module for the whole process while it traces."""
    tracer = torch.fx.experimental.proxy_tensor._ModuleStackTracer
    with TRACE_LOCK:
        owner, call_module, getattr_ = threading.get_ident(), tracer.call_module, tracer.getattr

        def guarded_call(self, m, forward, args, kwargs):
            mine = threading.get_ident() == owner
            return call_module(self, m, forward, args, kwargs) if mine else forward(*args, **kwargs)

        def guarded_getattr(self, attr, attr_val, cache):
            return getattr_(self, attr, attr_val, cache) if threading.get_ident() == owner else attr_val

        tracer.call_module, tracer.getattr = guarded_call, guarded_getattr
        try:
            yield
        finally:
            tracer.call_module, tracer.getattr = call_module, getattr_


@contextlib.contextmanager
def _forgetful():
    """Drop what torch keeps of every export for good: the shapes that ops were traced for, and the code of graphs."""
    sources = torch.fx.graph_module._loader.eval_cache
    before = set(sources)
    try:
        yield
    finally:
        torch._subclasses.fake_tensor.FakeTensorMode.cache_clear()
        for name in set(sources) - before:
            sources.pop(name, None)
            linecache.cache.pop(name, None)


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """A deep copy of a module, not attached to OneFlow, whose tensors are the module's own."""
    memo: dict = {}
    for sub in module.modules():
        for value in (*sub._parameters.values(), *sub._buffers.values(), *_tensors_in(sub.__dict__, 3)):
            memo[id(value)] = value
        memo[id(sub.__dict__.get("_oneflow_dispatcher"))] = None
    return copy.deepcopy(module, memo)


def _tensors_in(attributes: dict, depth: int):
    """Tensors that stand in attributes, and in containers and plain objects (attention processors) `depth` levels down."""
    for value in attributes.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif not depth or isinstance(value, (torch.nn.Module, type, str, int, float, bool, type(None))):
            continue
        elif isinstance(value, dict):
            yield from _tensors_in(value, depth - 1)
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(dict(enumerate(value)), depth - 1)
        elif isinstance(inner := getattr(value, "__dict__", None), dict):
            yield from _tensors_in(inner, depth - 1)


def watch(module: torch.nn.Module) -> Callable[[], list[str]]:
    """Remember every submodule's attributes; the returned function names those that have changed since.

    A module that stores something on itself when it runs (a cache, a counter) is one that no graph can stand for.
    """
    # Not the tables of tensors: torch.export swaps fake ones in, and reports changed buffers itself.
    saved = [(name, table, dict(table)) for name, sub in module.named_modules() for table in (sub.__dict__, sub._modules)]

    def changes() -> list[str]:
        # torch.export itself puts equal copies of containers in the place of attributes.
        return [
            f"{name}.{key}".lstrip(".")
            for name, table, before in saved
            for key in {**table, **before}
            if not _equal(table.get(key, saved), before.get(key, saved))
        ]

    return changes


def _equal(a, b) -> bool:
    """Equality of attributes: by value for containers and plain values, by identity for objects; torch.export minds tensors."""
    if a is b or (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_equal(a[k], b[k]) for k in a)
    return isinstance(a, (int, float, str, bytes, set, frozenset)) and a == b
