"""The body of a graph: from the nodes of a program to ops, OneFlow's own and the pack's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from . import engine, interop
from .capture import Program, is_bookkeeping, op_name
from .errors import OneFlowError, Refused, Unsupported
from .progress import Stage
from .provenance import where


def lower(
    program: Program,
    inputs: list[str],
    outputs: list[torch.fx.Node],
    weights: dict[Any, Any],
    stage: Stage,
    native: bool,
    ran: Callable[[torch.fx.Node], None],
    args: tuple[Any, ...],
) -> tuple[Any, ...]:
    """The body of nn.Graph.build: from lazy input tensors to lazy output tensors."""
    flow = engine.flow()
    from .lowering.types import cast

    env, given = {}, dict(zip(inputs, args))
    for node in program.graph.nodes:
        if node.op != "placeholder":
            break
        if node.name in given:
            # Bool comes and leaves as uint8: dlpack has no bool.
            value = given[node.name]
            env[node] = cast(value, torch.bool) if node.meta["val"].dtype == torch.bool else value
        elif node.name not in program.inputs and node.users:
            env[node] = weights[node.name]
    _lower_nodes(program, env, stage, native, ran)
    results = []
    for node in outputs:
        value = interop.flow_tensor(env[node])
        value = cast(value, torch.uint8) if node.meta["val"].dtype == torch.bool else value
        # An output must read what an op of this graph made.
        results.append(flow._C.identity(value) if node.op == "placeholder" else value)
    return tuple(results)


def _lower_nodes(program: Program, env: dict[Any, Any], stage: Stage, native: bool, ran: Callable[[torch.fx.Node], None]) -> None:
    """Run every node's lowering; `env` maps nodes to OneFlow tensors and weights, and starts with the placeholders.

    `ran` is called with each node that was lowered.
    """
    from .lowering.types import torch_dtype

    flow = engine.flow()
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    for position, node in enumerate(nodes):
        if position % 64 == 0:
            stage("lowering", position / len(nodes))
        if is_bookkeeping(node):
            if "getitem" in op_name(node):
                env[node] = env[node.args[0]][node.args[1]]
            continue
        try:
            env[node] = _lower_node(node, env, native)
        except Unsupported as refusal:
            raise refusal.at(where(node)) from None
        except RuntimeError as error:
            message = str(error).strip().splitlines()
            raise Unsupported(op_name(node), f"OneFlow refuses it: {message[-1] if message else error}", where(node)) from error
        ran(node)
        value, expected = env[node], node.meta["val"]
        if not isinstance(value, flow.Tensor) or not isinstance(expected, torch.Tensor):
            continue
        if tuple(value.shape) != tuple(expected.shape) or torch_dtype(value) != expected.dtype:
            raise OneFlowError(
                f"the lowering of {op_name(node)} in {where(node)} gives {tuple(value.shape)} {value.dtype}, "
                f"torch {tuple(expected.shape)} {expected.dtype}: please report this"
            )


def _lower_node(node: torch.fx.Node, env: dict[Any, Any], native: bool) -> Any:
    """What a node makes: by the pack where it has a kernel that takes the case, else by OneFlow's own ops."""
    from . import lowering

    def given(read: Callable[[Any], Any]) -> list[Any]:
        return [torch.fx.map_arg(part, lambda n: read(env[n])) for part in (node.args, node.kwargs)]

    if native:
        from . import kernels

        function, takes_weights = kernels.find(op_name(node))
        if function is not None:
            args, kwargs = given((lambda value: value) if takes_weights else interop.flow_tensor)
            with contextlib.suppress(Refused):
                return function(*args, **kwargs)
    args, kwargs = given(_widened if native else interop.flow_tensor)
    made = lowering.find(op_name(node))(*args, **kwargs)
    return _narrowed(made, node.meta["val"]) if native else made


def _widened(value: Any) -> Any:
    """A OneFlow tensor for its own ops, which have few kernels for half types on the CPU: those are computed in float32."""
    from .kernels.lowering import convert
    from .lowering.types import torch_dtype

    tensor = interop.flow_tensor(value)
    if not isinstance(tensor, engine.flow().Tensor):
        return tensor
    return convert(tensor, torch.float32) if torch_dtype(tensor) in (torch.bfloat16, torch.float16) else tensor


def _narrowed(made: Any, expected: Any) -> Any:
    """What was computed in float32 in the dtype that it should have."""
    from .kernels.lowering import convert
    from .lowering.types import torch_dtype

    if isinstance(made, (tuple, list)):
        return type(made)(map(_narrowed, made, expected))
    if isinstance(expected, torch.Tensor) and expected.dtype in (torch.bfloat16, torch.float16):
        return convert(made, expected.dtype) if torch_dtype(made) == torch.float32 else made
    return made
