"""From a call of a torch module to a graph of ATen ops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from . import autocast, decompositions, exporting, local
from .errors import Unsupported
from .provenance import where
from .state import depends, install_output_hooks, twin, watch

if TYPE_CHECKING:
    from . import signature
    from .autocast import Autocast


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
        on_cpu: per output, whether torch leaves it on the CPU.
        seconds: seconds by stage of capture.
    """

    graph: torch.fx.Graph
    inputs: list[str]
    weights: dict[str, str]
    constants: dict[str, torch.Tensor]
    outputs: list[torch.fx.Node]
    result: Any
    on_cpu: list[bool] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class FlatCall(torch.nn.Module):
    """The module as a function from tensors to a tuple of tensors: what torch.export can take for any signature."""

    def __init__(
        self, module: torch.nn.Module, rebuild: Callable[..., Any], adapted: Callable[..., Any], finish: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.module = module
        self.rebuild, self.adapted, self.finish = rebuild, adapted, finish

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self.rebuild(tensors)
        before = [(container, _items(container)) for container in _containers((args, kwargs))]
        # Not module(...): that would come back to the dispatcher.
        with self.adapted(self.module, tensors):
            result = self.module.forward(*args, **kwargs)
        # What is only taken out (a ControlNet's results, popped one by one) is no result that the caller waits for.
        if any(not any(item is old for old in items) for container, items in before for item in _items(container)):
            raise Unsupported("a stateful module", "forward puts something into a list or dict that it is given")
        finished: tuple[torch.Tensor, ...] = self.finish(result, tensors)
        return finished


def as_it_is(module: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
    """Of `capture`'s `adapted`: tensors of the call change nothing in the module."""
    return contextlib.nullcontext()


def observed(
    module: torch.nn.Module,
    rebuild: Callable[..., Any],
    flatten: Callable[..., Any],
    adapted: Callable[..., Any],
    computed: Callable[..., Any] | None = None,
) -> tuple[FlatCall, list[Any], list[str]]:
    """``(call, results, changed)``: when `call` is traced, what forward returned, flattened, and the attributes that its code
    has changed (`watch`) are added to the latter two."""
    results: list[Any] = []
    changed: list[str] = []
    changes = watch(module, computed or depends)

    def finish(result: Any, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # Here, since torch.export puts back some attributes itself before it returns.
        changed.extend(changes(given))
        results.append(flatten(result))
        return tuple(results[-1].tensors)

    call = FlatCall(module, rebuild, adapted, finish)
    call.training = module.training
    return call, results, changed


def _items(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _containers(value: Any) -> Iterator[Any]:
    """The lists and dicts in a call's arguments."""
    if isinstance(value, (list, dict)):
        yield value
    if isinstance(value, (list, tuple, dict)):
        for item in _items(value):
            yield from _containers(item)


def capture(
    module: torch.nn.Module,
    tensors: list[torch.Tensor],
    rebuild: Callable[..., Any],
    flatten: Callable[..., Any],
    is_lowered: Callable[[str], bool],
    adapted: Callable[..., Any] = as_it_is,
    casting: Autocast | None = None,
) -> Program:
    """Trace ``module.forward`` on `tensors` with torch.export.

    Args:
        tensors: the call's tensors; only shapes and dtypes matter.
        rebuild: from a sequence of tensors to ``(args, kwargs)`` of the call.
        flatten: from what forward returned to a `signature.Flat`.
        is_lowered: whether an ATen op can be lowered as it is; others are decomposed first.
        adapted: from the module's copy and the call's tensors to a context in which the copy is as these tensors say.
        casting: the autocast to trace under, whose casts become ops.

    Raises:
        Unsupported: the module changes its buffers or its inputs, or returns something that is no tensor of its own.
        Exception: whatever torch.export or the module's own code raises.
    """
    # torch.export swaps fake tensors into the module's tables, and the module's code may store what it
    # computes: neither must be seen by other threads, or stay. So a copy is traced that shares all tensors.
    module = twin(module)
    install_output_hooks(module)
    call, results, changed = observed(module, rebuild, flatten, adapted)
    with torch.no_grad(), exporting.alone(), exporting.sparing(), exporting.forgetful(), autocast.on(casting):
        exported = torch.export.export(call, tuple(tensors), strict=False)
        if changed:
            raise Unsupported("a stateful module", f"forward changes {', '.join(sorted(set(changed))[:3])}")
        # Decomposing traces everything a second time (4 s for Stable Diffusion's UNet), so it is done only on need. What is
        # traced first are the ops that autocast gets, and the second time those that it makes of them.
        if casting is not None or any(map(local.mutates, exported.graph.nodes)) or not _lower(exported.graph, is_lowered):
            _spell_out_diagonals(exported.graph)
            if casting is not None and (odd := autocast.spell_out(exported.graph, casting)) is not None:
                raise Unsupported(op_name(odd), "torch.autocast casts inside of it", where(odd))
            dtypes = _output_dtypes(exported.graph)
            exported = exported.run_decompositions(_table(is_lowered))
            # Those that it was to return: behind what it changes, which `_program` refuses.
            if casting is not None and _output_dtypes(exported.graph)[-len(dtypes) :] != dtypes:
                raise Unsupported("an output", "it has another dtype once its ops are decomposed")
    return _program(exported, results[0])


def _table(is_lowered: Callable[[str], bool]) -> dict[Any, Callable[..., Any]]:
    """What becomes of the ops that cannot be lowered."""
    table = {**torch.export.default_decompositions(), **decompositions.TABLE}
    return {op: how for op, how in table.items() if not is_lowered(str(op))}


def _lower(graph: torch.fx.Graph, is_lowered: Callable[[str], bool]) -> bool:
    """See that all ops can be lowered, those that cannot having been decomposed by themselves; whether it succeeded."""

    def is_known(node: torch.fx.Node) -> bool:
        return is_bookkeeping(node) or is_lowered(op_name(node))

    unknown = [n for n in graph.nodes if n.op == "call_function" and not is_known(n)]
    return not unknown or local.decompose(graph, unknown, _table(is_lowered), is_known)


def _output_dtypes(graph: torch.fx.Graph) -> list[torch.dtype | None]:
    (output,) = graph.find_nodes(op="output")
    made: Any = output.args[0]
    return [getattr(n.meta.get("val"), "dtype", None) for n in made if isinstance(n, torch.fx.Node)]


def _spell_out_diagonals(graph: torch.fx.Graph) -> None:
    """Write ``x.fill_diagonal_(v)`` of a matrix as a fill under a mask: torch cannot take its own as a function of tensors."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target is not aten.fill_diagonal_.default or node.args[0].meta["val"].ndim != 2 or len(node.args) > 2:
            continue
        x, fill = node.args
        with graph.inserting_before(node):
            like = x.meta["val"]
            rows, columns = (graph.call_function(aten.arange.default, (n,), {"device": like.device}) for n in like.shape)
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


def _program(exported: torch.export.ExportedProgram, result: signature.Flat) -> Program:
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
    on_cpu = ["val" in o.meta and o.meta["val"].device.type == "cpu" for o in outputs]
    return Program(exported.graph, inputs, weights, constants, outputs, result, on_cpu)
