"""Elementwise chains as Triton kernels, one for each set of instructions and strides."""

import functools
import hashlib
import importlib.util
import math
import sys
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ..lowering import Lowered
from ..values import Ref
from .strides import collapsed

# (code, a, b, number or name) of `passes.native_ops.chain`.
Instructions = Sequence[tuple[str, int, int, Any]]
Sizes = Sequence[int]

# As torch's: what is not a number stays so.
_MAX, _MIN = (f"tl.{name}({{0}}, {{1}}, propagate_nan=tl.PropagateNan.ALL)" for name in ("maximum", "minimum"))
_BINARY = {"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "max": _MAX, "min": _MIN}  # fmt: skip
_SCALAR = {
    "add_scalar": "{0} + {1}", "mul_scalar": "{0} * {1}", "rsub_scalar": "{1} - {0}", "rdiv_scalar": "{1} / {0}",
    "max_scalar": _MAX, "min_scalar": _MIN, 
}  # fmt: skip
# Square roots as they are rounded: the quick ones take bfloat16's smallest numbers for 0.
_UNARY = {
    "exp": "tl.exp({0})", "log": "tl.log({0})", "sqrt": "tl.sqrt_rn({0})", "rsqrt": "1.0 / tl.sqrt_rn({0})", "sin": "tl.sin({0})",
    "cos": "tl.cos({0})", "neg": "-{0}", "abs": "tl.abs({0})", "square": "{0} * {0}", "erf": "tl.erf({0})",
}  # fmt: skip
_HEAD = """import triton
import triton.language as tl

from diffusers_oneflow.replay.cuda.kernels import activate


@triton.jit
def kernel(out, {operands}, size, BLOCK: tl.constexpr):
    at = tl.program_id(0){wide} * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
"""
_BLOCK = 1024
_LOCK = threading.Lock()


# Powers that are products: others take torch's own, whose rules for negative numbers are the ones wanted.
_POWERS = {
    -1.0: "1.0 / {0}", -0.5: "1.0 / tl.sqrt_rn({0})", 0.5: "tl.sqrt_rn({0})", 1.0: "{0}", 2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}", 4.0: "({0} * {0}) * ({0} * {0})",
}  # fmt: skip


def expressible(instructions: Instructions) -> bool:
    """Whether a kernel can be written for them."""
    return all(code != "pow_scalar" or float(value) in _POWERS for code, _, _, value in instructions)


@runtime_checkable
class Absorbs(Protocol):
    """What runs a step, and may do in its kernel what a chain does with its result, or with a concatenation that it begins."""

    def absorb(
        self, lowered: Lowered, node: torch.fx.Node, at: int, operands: Sequence[Ref], instructions: Instructions
    ) -> Ref | None:
        """The chain's result, if it does, else None and nothing has changed.

        Args:
            node: of the chain.
            at: which of its operands is the step's result, or the concatenation.
        """


class Chain:
    """``run(out, *operands)`` for a chain of `passes.native_ops`; operands broadcast to `shape`, of any strides.

    Args:
        turned: operands that are read as their pairs turned, as `rotary` has it.

    Attributes:
        is_sum: it adds two operands, and does nothing else.
        gated: three operands, if it is ``first * second + third``.
        number: what it adds to its operand, if it does nothing else.
    """

    def __init__(
        self,
        shape: Sizes,
        shapes: Sequence[Sizes],
        strides: Sequence[Sizes],
        instructions: Instructions,
        turned: Collection[int] = (),
    ) -> None:
        self._text = _source(shape, shapes, strides, tuple(map(tuple, instructions)), turned)
        self.gated = None if turned or len(shapes) != 3 else _gated(instructions)
        self.number = float(instructions[0][3]) if [i[0] for i in instructions] == ["add_scalar"] else None
        self._size = math.prod(shape)
        self.kind = self._text
        self.is_sum = len(shapes) == 2 and [tuple(i[:3]) for i in instructions] in ([("add", 0, 1)], [("add", 1, 0)])

    def __call__(self, out: torch.Tensor, *operands: torch.Tensor) -> None:
        """Fill `out`, which is dense."""
        _compiled(self._text)[(-(-self._size // _BLOCK),)](out, *operands, self._size, _BLOCK, num_warps=4)


def _gated(instructions: Instructions) -> tuple[int, int, int] | None:
    if [i[0] for i in instructions] != ["mul", "add"]:
        return None
    (_, a, b, _), (_, c, d, _) = instructions
    other = d if c == 3 else c
    return (a, b, other) if {a, b, other} == {0, 1, 2} and 3 in (c, d) else None


def _source(
    shape: Sizes, shapes: Sequence[Sizes], strides: Sequence[Sizes], instructions: Instructions, turned: Collection[int]
) -> str:
    # Indices in 64 bits take twice the registers.
    reach = max((sum((n - 1) * s for n, s in zip(own, steps)) for own, steps in zip(shapes, strides)), default=0)
    wide = ".to(tl.int64)" if max(reach, math.prod(shape)) >= 1 << 31 else ""
    lines = [_HEAD.format(operands=", ".join(f"x{i}" for i in range(len(shapes))), wide=wide)]
    for i, (own, steps) in enumerate(zip(shapes, strides)):
        at = "(at ^ 1)" if i in turned else "at"
        lines.append(f"    v{i} = tl.load(x{i} + {_index(shape, own, steps, at)}, inside).to(tl.float32)\n")
        if i in turned:
            lines.append(f"    v{i} = tl.where(at % 2 == 0, -v{i}, v{i})\n")
    for number, (code, a, b, value) in enumerate(instructions, len(shapes)):
        if code in _BINARY:
            made = _BINARY[code].format(f"v{a}", f"v{b}")
        elif code == "pow_scalar":
            made = _POWERS[float(value)].format(f"v{a}")
        elif code in _SCALAR:
            made = _SCALAR[code].format(f"v{a}", _literal(value))
        elif code == "act":
            made = f'activate(v{a}, "{value}")'
        else:
            made = _UNARY[code].format(f"v{a}")
        lines.append(f"    v{number} = {made}\n")
    last = len(shapes) + len(instructions) - 1
    lines.append(f"    tl.store(out + at, v{last}.to(out.dtype.element_ty), inside)\n")
    return "".join(lines)


def _literal(value: float) -> str:
    value = float(value)
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _index(shape: Sizes, own: Sizes, steps: Sizes, place: str) -> str:
    """Where an element of the result, whose `place` is the name of, lies in an operand."""
    lead = len(shape) - len(own)
    strides = [0] * lead + [0 if n == 1 and shape[lead + i] != 1 else s for i, (n, s) in enumerate(zip(own, steps))]
    dims = collapsed(shape, strides)
    terms, below = [], 1
    for position, (size, stride) in reversed(list(enumerate(dims))):
        if stride:
            at = place if below == 1 else f"({place} // {below})"
            at = at if position == 0 else f"({at} % {size})"
            terms.append(at if stride == 1 else f"{at} * {stride}")
        below *= size
    return " + ".join(terms) if terms else "at * 0"


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="diffusers_oneflow-"))


def _compiled(source: str) -> Any:
    """Triton reads the source of a kernel from a file."""
    with _LOCK:
        return _loaded(source)


@functools.cache
def _loaded(source: str) -> Any:
    name = f"diffusers_oneflow_chain_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    path = _folder() / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"Python cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.kernel
