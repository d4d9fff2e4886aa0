"""How tensors get into a graph and out of it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import engine, interop
from .capture import Program

# Up to here a copy takes less time than the two objects of dlpack: with cold caches some 25 microseconds a tensor.
_KEPT_BYTES = 1 << 20
# Small results are allocated so many at a time: after a graph has run, the first takes 50 microseconds, each other one 1.
_SPARE, _SPARE_BYTES = 8, 64 << 10


class Port:
    """One input or output: a small one has memory of its own, made once; a large one is read, or written, where it is.

    Args:
        shape, dtype: of the tensor.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._shape, self._dtype = tuple(shape), dtype
        self._own: torch.Tensor | None = None
        self._flow: Any = None
        # Not a tensor of inference mode, which could not be written to outside it.
        with torch.inference_mode(False):
            own = torch.empty(self._shape, dtype=dtype)
        self._bytes, self._address = own.nbytes, own.data_ptr()
        self._copy = engine.native().copy_bytes
        self._spare: list[tuple[torch.Tensor, int]] = []
        # What OneFlow has no tensors for, the build refuses, with the place.
        if self._bytes <= _KEPT_BYTES and not interop.refusal(own):
            self._own, self._flow = own, interop.to_flow(own)

    def enter(self, tensor: torch.Tensor) -> Any:
        """The OneFlow tensor that holds what `tensor` does, whose memory no graph will change."""
        if self._own is None:
            return interop.to_flow(interop.dense(tensor))
        if tensor.is_contiguous() and not tensor.is_neg():
            self._copy(self._address, tensor.data_ptr(), self._bytes)
        else:
            self._own.copy_(tensor.detach())
        return self._flow

    def leave(self) -> tuple[Any, ...]:
        """``(a new tensor, the OneFlow tensor for the graph to write to, an address for `finish`)``."""
        if self._own is None:
            made = torch.empty(self._shape, dtype=self._dtype)
            return made, interop.to_flow(made), 0
        made, address = self._spare.pop() if self._spare else self._allocate()
        return made, self._flow, address

    def _allocate(self) -> tuple[torch.Tensor, int]:
        count = _SPARE if self._bytes <= _SPARE_BYTES else 1
        with torch.inference_mode(False):  # a later call may be outside it
            made = [torch.empty(self._shape, dtype=self._dtype) for _ in range(count)]
        self._spare = [(tensor, tensor.data_ptr()) for tensor in made]
        return self._spare.pop()

    def finish(self, address: int) -> None:
        """After the graph has run; `address` is the third of what `leave` gave."""
        # No op of torch: nothing of it is in the caches now.
        if address:
            self._copy(address, self._address, self._bytes)


class Inputs:
    """The inputs that a program's graph reads.

    Args:
        program: the program.
        examples: one torch tensor per input of the program.
    """

    def __init__(self, program: Program, examples: list[torch.Tensor]) -> None:
        self._positions = [i for i, name in enumerate(program.inputs) if is_read(program, name)]
        self.names = [program.inputs[i] for i in self._positions]
        examples = list(map(interop.real, examples))
        self._ports = [Port(examples[i].shape, examples[i].dtype) for i in self._positions]

    def enter(self, tensors: list[torch.Tensor]) -> list[Any]:
        """OneFlow tensors for the graph, of one tensor per input of the program."""
        return [port.enter(interop.real(tensors[i])) for i, port in zip(self._positions, self._ports)]


class Outputs:
    """Which outputs of a program its graph computes, and which are an input handed back.

    Attributes:
        computed: the nodes that the graph has to return.
    """

    def __init__(self, program: Program) -> None:
        index = {name: i for i, name in enumerate(program.inputs)}
        self.computed: list[torch.fx.Node] = []
        self._sources: list[tuple[str, int]] = []
        for node in program.outputs:
            if node.name in index:
                self._sources.append(("input", index[node.name]))
                continue
            if node not in self.computed:
                self.computed.append(node)
            self._sources.append(("made", self.computed.index(node)))
        values = [node.meta["val"] for node in self.computed]
        self._ports = [Port(v.shape, v.dtype) for v in values]

    def leave(self) -> list[tuple[Any, ...]]:
        """What `Port.leave` gives for each computed output."""
        return [port.leave() for port in self._ports]

    def collect(self, inputs: list[torch.Tensor], leaving: list[tuple[Any, ...]]) -> list[torch.Tensor]:
        """The program's outputs, of its inputs and of what `leave` gave."""
        for port, (_, _, address) in zip(self._ports, leaving):
            port.finish(address)
        return [inputs[i] if source == "input" else leaving[i][0] for source, i in self._sources]


def is_read(program: Program, name: str) -> bool:
    """Whether any op of a program reads its input of that name."""
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == name)
    return any(user.op != "output" for user in node.users)
