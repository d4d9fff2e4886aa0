"""Takes out of a program what does not change from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..capture import Program, op_name
from .base import args_of, value
from .common_subexpressions import RANDOM

# Worth a graph of their own; a program without any of them stays whole.
_HEAVY = ("linear", "conv2d", "attention", "matmul", "addmm", "bmm", "mm")
_VIEWS = ("view", "reshape", "unsqueeze", "permute", "transpose", "expand", "slice")


@dataclass
class Prologue:
    """A part of a program that depends on some of its inputs only, the prompt or the timestep say.

    Attributes:
        program: the part; its inputs are names among those of the whole program.
        results: names under which the rest finds what the part computes (`Program.constants`), in the order of its outputs.
    """

    program: Program
    results: list[str]


def split(program: Program, least: int = 0) -> list[Prologue]:
    """Move what does not depend on the program's first input (the latents) into prologues, in place.

    There is one for each set of inputs that such values depend on; what several of them need, each computes. The rest
    reads their results as constants, whose memory whoever runs the prologues fills. Programs of one input, or whose
    prologues would hold nothing heavy, stay whole.

    Args:
        least: bytes of weights that a prologue must read to be worth it; noticing that nothing has changed costs 1 ms.
    """
    if len(program.inputs) < 2:
        return []
    needs = needs_of(program)
    groups: dict[frozenset[Any], list[torch.fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and needs[node] and program.inputs[0] not in needs[node]:
            groups.setdefault(needs[node], []).append(node)
    groups = {inputs: nodes for inputs, nodes in groups.items() if _worthwhile(program, nodes, least)}
    while True:
        inside = {node for nodes in groups.values() for node in nodes}
        results = {inputs: _results(nodes, inside) for inputs, nodes in groups.items()}
        # A group that must stay reads what the others make.
        if all(results.values()):
            break
        groups = {inputs: nodes for inputs, nodes in groups.items() if results[inputs]}
    # All are copied before the program changes.
    parts = {inputs: _part(program, inputs, made) for inputs, made in results.items()}
    prologues = []
    for number, (inputs, part) in enumerate(parts.items()):
        names = [_replace(program, node, inside, f"hoisted_{number}_{i}") for i, node in enumerate(results[inputs])]
        prologues.append(Prologue(part, names))
    program.graph.eliminate_dead_code()
    return prologues


def _worthwhile(program: Program, nodes: list[Any], least: int) -> bool:
    weights = {i for n in nodes for i in n.all_input_nodes if i.op == "placeholder" and i.name in program.weights}
    if sum(value(w).numel() * value(w).dtype.itemsize for w in weights) < least:
        return False
    noisy = any(word in op_name(n) for n in nodes for word in RANDOM)
    # An output of the whole program would have to be copied, and an empty tensor cannot be kept.
    kept = any(n in program.outputs for n in nodes)
    return any(_is(n, _HEAVY) for n in nodes) and not noisy and not kept


def _results(nodes: list[Any], inside: set[Any]) -> list[torch.fx.Node]:
    """What of a group the rest reads. What only looks at a result in another way, or picks from a tuple, is left to it."""
    wanted = set()
    for node in nodes:
        if any(user not in inside for user in node.users):
            while _is(node, _VIEWS) and args_of(node)[0] in nodes:
                node = args_of(node)[0]
            wanted.add(node)
    single = all(isinstance(n.meta.get("val"), torch.Tensor) and value(n).numel() for n in wanted)
    return [n for n in nodes if n in wanted] if single else []


def _replace(program: Program, node: torch.fx.Node, inside: set[Any], name: str) -> str:
    """Let the rest of the program read a constant in the place of `node`; returns the constant's name."""
    with program.graph.inserting_before(next(n for n in program.graph.nodes if n.op != "placeholder")):
        made = program.graph.placeholder(name)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user not in inside or _is(user, _VIEWS))
    program.constants[made.name] = torch.zeros(tuple(value(made).shape), dtype=value(made).dtype)
    return made.name


def _is(node: torch.fx.Node, names: tuple[str, ...]) -> bool:
    return bool(op_name(node).split(".")[1:2]) and op_name(node).split(".")[1] in names


def needs_of(program: Program) -> dict[torch.fx.Node, frozenset[Any]]:
    """Node -> the inputs of the program that it depends on."""
    needs: dict[torch.fx.Node, frozenset[Any]] = {}
    for node in program.graph.nodes:
        own = frozenset([node.name]) if node.op == "placeholder" and node.name in program.inputs else frozenset()
        needs[node] = own.union(*(needs[i] for i in node.all_input_nodes))
    return needs


def _part(program: Program, inputs: frozenset[Any], results: list[Any]) -> Program:
    """What computes `results` from the inputs and weights, as a program of its own."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    wanted, stack = set(), list(results)
    while stack:
        node = stack.pop()
        if node not in wanted:
            wanted.add(node)
            stack += node.all_input_nodes
    for node in program.graph.nodes:
        if node in wanted or (node.op == "placeholder" and node.name in inputs):
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    outputs = [copies[n] for n in results]
    graph.output(tuple(outputs))
    names = {c.name: n.name for n, c in copies.items() if n.op == "placeholder"}
    weights = {c: program.weights[n] for c, n in names.items() if n in program.weights}
    constants = {c: program.constants[n] for c, n in names.items() if n in program.constants}
    return Program(graph, [i for i in program.inputs if i in inputs], weights, constants, outputs, None)
