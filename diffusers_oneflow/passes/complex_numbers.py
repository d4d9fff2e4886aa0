"""Complex numbers as pairs of real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from ..capture import Program, op_name
from ..errors import Unsupported
from ..provenance import provenance, where
from .base import Rewrite, args_of, emit, value

_aten = torch.ops.aten
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_SAME = {"clone", "alias", "detach", "contiguous", "lift_fresh_copy", "resolve_conj"}
_RESHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"}
# Position of the dimension among the arguments, and whether it counts a dimension that is yet to be made.
_DIMENSION = {
    "select": (1, False), "slice": (1, False), "cat": (1, False), "split": (2, False), "split_with_sizes": (2, False),
    "chunk": (2, False), "unbind": (1, False), "index_select": (1, False), "stack": (1, True), "narrow": (1, False),
    "select_scatter": (2, False), "slice_scatter": (2, False), "repeat_interleave": (2, False),
}  # fmt: skip


class RealNumbers(Rewrite):
    """OneFlow has no complex numbers: a complex tensor becomes a real one with a last dimension of 2.

    Rotary embeddings multiply by complex numbers in some models (Lumina, Z-Image, Qwen-Image). Complex inputs come in as
    such pairs, too (`interop.real`), and so do constants.

    Raises:
        Unsupported: an op of complex numbers that is not known here, or a complex output or weight.
    """

    def run(self, program: Program) -> Rewrite:
        # A complex node -> the real one in its place.
        self._pairs: dict[torch.fx.Node, torch.fx.Node] = {}
        for node in list(program.graph.nodes):
            if node.op == "placeholder" and _is_complex(node):
                self._placeholder(program, node)
            elif node.op == "call_function":
                self.visit(program, node)
        if any(o in self._pairs for o in program.outputs):
            raise Unsupported("an output", "it is complex, and OneFlow has no complex numbers")
        return self

    def _placeholder(self, program: Program, node: torch.fx.Node) -> None:
        if node.name in program.weights:
            raise Unsupported(f"the weight {program.weights[node.name]}", "it is complex, and OneFlow has no complex numbers")
        if node.name in program.constants:
            program.constants[node.name] = torch.view_as_real(program.constants[node.name].resolve_conj())
        shape, dtype = value(node).shape, value(node).dtype
        node.meta["val"] = torch.empty((*shape, 2), dtype=_REAL[dtype], device="meta")
        self._pairs[node] = node

    def visit(self, program: Program, node: torch.fx.Node) -> None:
        complex_inputs = [i for i in node.all_input_nodes if i in self._pairs]
        if not complex_inputs and not _is_complex(node):
            return
        name = "getitem" if "getitem" in op_name(node) else op_name(node).split(".")[1]
        with program.graph.inserting_before(node):
            if name == "view_as_real":
                self.replace(program, node, self._pairs[args_of(node)[0]])
                return
            if name in ("real", "imag"):
                self.replace(program, node, self._part(program, args_of(node)[0], name == "imag"))
                return
            made = self._made(program, node, name)
        if made is None:
            raise Unsupported(op_name(node), "it works on complex numbers, which OneFlow has not", where(node))
        self._pairs[node] = made
        self.applied += 1

    def _made(self, program: Program, node: torch.fx.Node, name: str) -> torch.fx.Node | None:
        """The pairs of a complex node, or None where it is not known how to make them."""
        args = args_of(node)
        if name == "view_as_complex":
            return cast(torch.fx.Node, args[0])
        if name in ("polar", "complex"):
            return self._joined(program, node, *(self._polar(program, node) if name == "polar" else args[:2]))
        if name in _SAME:
            return self._pairs[args[0]]
        if name in ("to", "_to_copy"):
            same = args[0] in self._pairs and value(self._pairs[args[0]]).dtype == _REAL[value(node).dtype]
            return self._pairs[args[0]] if same else None
        if name == "mul":
            return self._product(program, node, *args[:2])
        if name in ("add", "sub") and all(a in self._pairs for a in args[:2]):
            return self._same_op(program, node, args)
        if name in ("_conj", "conj_physical"):
            minus = self._op(program, _aten.neg.default, (self._part(program, args[0], True),), node)
            return self._joined(program, node, self._part(program, args[0], False), minus)
        if name in ("full", "zeros", "new_full", "new_zeros", "full_like", "zeros_like"):
            return self._filled(program, node, args[-1] if "full" in name else 0)
        return self._moved(program, node, name)

    def _moved(self, program: Program, node: torch.fx.Node, name: str) -> torch.fx.Node | None:
        """Ops that only move numbers keep the pair together."""
        args, shape = list(args_of(node)), [*getattr(node.meta["val"], "shape", ())]
        ndim = len(shape)
        if name == "getitem":
            return self._same_op(program, node, args)
        if name in _RESHAPES:
            return self._op(program, _aten.view.default, (self._pairs[args[0]], [*shape, 2]), node, pair=True)
        if name == "expand":
            return self._op(program, node.target, (self._pairs[args[0]], [*shape, 2]), node, pair=True)
        if name == "permute":
            return self._same_op(program, node, [args[0], [*(d % ndim for d in args[1]), ndim]])
        if name == "transpose":
            return self._same_op(program, node, [args[0], *(d % ndim for d in args[1:3])])
        if name == "flip":
            return self._same_op(program, node, [args[0], [d % ndim for d in args[1]]])
        if name == "repeat":
            return self._same_op(program, node, [args[0], [*args[1], 1]])
        if name in ("pad", "constant_pad_nd"):
            return self._same_op(program, node, [args[0], [0, 0, *args[1]], *args[2:]])
        if name == "index":
            return self._same_op(program, node, args)
        if name in _DIMENSION:
            position, new = _DIMENSION[name]
            first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
            # The pair is a dimension more now, at the end.
            count = value(self._pairs[first]).ndim - 1 + new
            if len(args) > position:
                args[position] %= count
            elif "dim" in node.kwargs or name == "repeat_interleave":
                return None
            if name != "index_select" and not all(i in self._pairs for i in node.all_input_nodes):
                return None
            return self._same_op(program, node, args)
        return None

    def _same_op(self, program: Program, node: torch.fx.Node, args: Sequence[Any]) -> torch.fx.Node:
        """The node's own op on pairs."""
        pairs: Any = torch.fx.map_arg(tuple(args), lambda n: self._pairs.get(n, n))
        made = self._op(program, node.target, pairs, node, pair=True)
        made.kwargs = dict(node.kwargs)
        return made

    def _product(self, program: Program, node: torch.fx.Node, a: Any, b: Any) -> torch.fx.Node | None:
        if not all(x in self._pairs for x in (a, b)):
            pair, factor = (a, b) if a in self._pairs else (b, a)
            if isinstance(factor, complex):
                return None
            if isinstance(factor, torch.fx.Node):
                factor = self._op(program, _aten.unsqueeze.default, (factor, -1), factor, (*value(factor).shape, 1))
            return self._op(program, _aten.mul.Tensor, (self._pairs[pair], factor), node, pair=True)
        (ar, ai), (br, bi) = ([self._part(program, x, imaginary) for imaginary in (False, True)] for x in (a, b))
        rr, ii, ri, ir = (self._op(program, _aten.mul.Tensor, pair, node) for pair in ((ar, br), (ai, bi), (ar, bi), (ai, br)))
        real = self._op(program, _aten.sub.Tensor, (rr, ii), node)
        return self._joined(program, node, real, self._op(program, _aten.add.Tensor, (ri, ir), node))

    def _polar(self, program: Program, node: torch.fx.Node) -> Iterator[torch.fx.Node]:
        length, angle = args_of(node)[:2]
        for function in (_aten.cos.default, _aten.sin.default):
            side = self._op(program, function, (angle,), angle, value(angle).shape)
            yield self._op(program, _aten.mul.Tensor, (length, side), node)

    def _filled(self, program: Program, node: torch.fx.Node, number: Any) -> torch.fx.Node | None:
        if not isinstance(number, (int, float)):
            return None
        shape, dtype = list(value(node).shape), _REAL[value(node).dtype]
        sides = []
        for fill in (number, 0):
            made = self._op(program, _aten.full.default, (shape, fill), node)
            made.kwargs = {"dtype": dtype}
            sides.append(made)
        return self._joined(program, node, *sides)

    def _part(self, program: Program, x: torch.fx.Node, imaginary: bool) -> torch.fx.Node:
        pair = self._pairs[x]
        return emit(program, _aten.select.int, (pair, value(pair).ndim - 1, int(imaginary)), value(pair).shape[:-1],
                    value(pair).dtype, x)  # fmt: skip

    def _joined(self, program: Program, node: torch.fx.Node, real: torch.fx.Node, imaginary: torch.fx.Node) -> torch.fx.Node:
        return self._op(program, _aten.stack.default, ([real, imaginary], value(node).ndim), node, pair=True)

    @staticmethod
    def _op(
        program: Program,
        target: Any,
        args: tuple[Any, ...],
        like: torch.fx.Node,
        shape: Sequence[int] | None = None,
        pair: bool = False,
    ) -> torch.fx.Node:
        """A node of the shape of `like`, or of its pairs; of real numbers."""
        made = like.meta["val"]
        if isinstance(made, (list, tuple)):
            node = program.graph.call_function(target, args)
            parts = [torch.empty((*v.shape, 2), dtype=_REAL[v.dtype], device="meta") for v in made]
            node.meta = {**provenance(like), "val": type(made)(parts)}
            return node
        shape = made.shape if shape is None else shape
        return emit(program, target, args, (*shape, 2) if pair else shape, _REAL.get(made.dtype, made.dtype), like)


def _is_complex(node: torch.fx.Node) -> bool:
    made = node.meta.get("val")
    return any(isinstance(v, torch.Tensor) and v.is_complex() for v in (made if isinstance(made, (list, tuple)) else [made]))
