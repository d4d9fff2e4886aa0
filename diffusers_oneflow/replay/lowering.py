"""From the nodes of a program to steps on a device's tensors."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..capture import Program, is_bookkeeping, op_name
from ..errors import Unsupported
from ..lowering import registry
from ..passes import native_ops  # noqa: F401 (their nodes are lowered here)
from ..provenance import where
from . import parts
from .values import Ref, Step, View, dense, map_refs, meta, refs

if TYPE_CHECKING:
    from .device import Device

# Another shape on the same memory: the shape is that of the node's value.
RESHAPES = {
    "aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.flatten.using_ints",
    "aten.unflatten.int", "aten.view_as.default", "aten.reshape_as.default",
}  # fmt: skip
_VIEWS = {
    "aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.unsqueeze.default", "aten.squeeze.dim",
    "aten.squeeze.dims", "aten.expand.default", "aten.slice.Tensor", "aten.select.int", "aten.unfold.default",
    "aten.alias.default", "aten.detach.default", "aten.squeeze.default", "aten.narrow.default", "aten.movedim.int",
    "aten.movedim.intlist", "aten.swapaxes.default", "aten.swapdims.default",
}  # fmt: skip
_PARTS = {"aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int"}
# Their results are new tensors in torch, but equal to their input: nobody writes to it.
_SAME = {"aten.clone.default", "aten.contiguous.default", "aten.dropout.default", "aten.lift_fresh_copy.default"}


class Lowered:
    """A program as steps.

    Args:
        program: after the passes of the kernel pack.
        weights: placeholder name -> tensor on the device, parameters and constants.
        inputs: meta tensors of the program's inputs that its graph reads, by placeholder name.
        device: has `find(op) -> function or None`, the kernels that this device has of its own.

    Attributes:
        steps: in order.
        outputs: what `program.outputs` are, by node.
        merged: results of nodes to come that a step has computed already.

    Raises:
        Unsupported: an op that no device may run; the message has op and place.
    """

    def __init__(
        self, program: Program, weights: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor], device: "Device"
    ) -> None:
        self.steps: list[Step] = []
        self.device = device
        self.merged: dict[torch.fx.Node, Ref] = {}
        known = {name: Ref(number, like) for number, (name, like) in enumerate(inputs.items())}
        known |= {name: Ref(tensor, meta(tensor)) for name, tensor in weights.items()}
        env: dict[torch.fx.Node, Any] = {}
        self._env = env
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in known:
                env[node] = known[node.name]
            elif node.op == "call_function":
                env[node] = self._lower(node, env)
        self.outputs: dict[torch.fx.Node, Ref] = {n: env[n] for n in program.outputs if n in env}
        self._drop_unread()

    def value(self, node: Any) -> Ref:
        """What a node that has been lowered gives."""
        found = self._env[node]
        assert isinstance(found, Ref)  # what is asked for is one tensor
        return found

    def weight(self, node: Any) -> torch.Tensor | None:
        """The parameter or constant that a placeholder stands for, if it does."""
        ref = self._env.get(node) if isinstance(node, torch.fx.Node) and node.op == "placeholder" else None
        return ref.source if isinstance(ref, Ref) and isinstance(ref.source, torch.Tensor) else None

    def _drop_unread(self) -> None:
        """Steps whose results others have taken over."""
        needed = {ref.source for ref in self.outputs.values()}
        for step in reversed(self.steps):
            if step in needed:
                needed.update(ref.source for ref in refs(step.args))
        self.steps = [step for step in self.steps if step in needed]
        for number, step in enumerate(self.steps):
            step.number = number

    def _lower(self, node: torch.fx.Node, env: dict[torch.fx.Node, Any]) -> Any:
        name = op_name(node)
        args: Any = torch.fx.map_arg(node.args, env.__getitem__)
        kwargs: Any = torch.fx.map_arg(node.kwargs, env.__getitem__)
        target: Any = node.target
        # All of a graph is on one device: what the module's code makes on the CPU, or takes there, as well.
        args = tuple(self.device.torch if isinstance(a, torch.device) else a for a in args)
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        if kwargs.get("device") is not None or _makes_on_cpu(target):
            kwargs["device"] = self.device.torch
        if is_bookkeeping(node):
            return args[0][args[1]] if "getitem" in name else None
        if name in _SAME:
            return args[0]
        if name == "aten.cat.default" and (source := parts.whole(node)) is not None:
            return env[source]
        made = node.meta["val"]
        if name in RESHAPES or name in _VIEWS:
            shape = tuple(made.shape)
            view = (lambda t: t.view(shape)) if name in RESHAPES else (lambda t: target(t, *args[1:], **kwargs))
            return self._seen(node, args[0], view)
        if name in _PARTS:
            return tuple(self._seen(node, args[0], _part(node.target, args[1:], kwargs, i)) for i in range(len(made)))
        own = self.device.find(name)
        if own is not None:
            return own(self, node, *args, **kwargs)
        return self.in_torch(node, args, kwargs)

    def in_torch(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step, or one for each result, that calls torch's own op; the way of all that has no kernel of its own."""
        name = op_name(node)
        if not (registry.is_lowered(name) or name.startswith("oneflow.")):
            raise Unsupported(name, "no lowering is registered for it", where(node))
        made = node.meta["val"]
        if isinstance(made, torch.Tensor):
            return self.step(node, _call(node.target, None), (args, kwargs), made.shape, made.dtype, f"torch {name}")
        return tuple(
            self.step(node, _call(node.target, i), (args, kwargs), m.shape, m.dtype, f"torch {name}")
            for i, m in enumerate(made)
        )  # fmt: skip

    def step(
        self,
        node: torch.fx.Node,
        run: Callable[..., torch.Tensor | None],
        args: tuple[Any, ...],
        shape: Sequence[int],
        dtype: torch.dtype,
        kernel: str,
        own: bool = False,
    ) -> Ref:
        """Add a step; the arguments are as in `Step`."""
        made = Step(run, args, dense(shape, dtype), op_name(node), kernel, where(node), len(self.steps), own)
        self.steps.append(made)
        return Ref(made, made.like)

    def is_read(self, step: Step) -> bool:
        """Whether a step that is there already reads its result."""
        return any(read.source is step for other in self.steps[step.number + 1 :] for read in refs(other.args))

    def replace(self, node: torch.fx.Node, ref: Ref) -> None:
        """From now on `node`, and all views of the same result, are views of `ref`, which has as many numbers."""
        made = self.value(node).source
        assert isinstance(made, Step)  # inputs and weights are where they are
        shape = tuple(made.like.shape)
        whole = ref.through(lambda t: t.view(shape))

        def renewed(old: Ref) -> Ref:
            return Ref(whole.source, old.like, (*whole.views, *old.views)) if old.source is made else old

        def is_seen(other: torch.fx.Node) -> bool:
            return any(old.source is made for old in refs(self._env.get(other)))

        first = node
        while (above := next(filter(is_seen, first.all_input_nodes), None)) is not None:
            first = above
        seen = [first]
        for other in seen:
            self._env[other] = map_refs(self._env[other], renewed)
            seen += [user for user in other.users if is_seen(user)]

    def contiguous(self, node: torch.fx.Node, ref: Ref) -> Ref:
        """`ref` where it is dense already, else a copy of it."""
        if ref.like.is_contiguous():
            return ref
        own = self.device.find("oneflow.copy")
        made: Ref = self.step(node, _copy, (ref,), ref.shape, ref.dtype, "copy") if own is None else own(self, node, ref)
        return made

    def _seen(self, node: torch.fx.Node, ref: Ref, view: View) -> Ref:
        try:
            return ref.through(view)
        except RuntimeError:  # torch cannot look at these strides so
            return self.contiguous(node, ref).through(view)


def _makes_on_cpu(target: Any) -> bool:
    """Whether an op reads no tensor, and makes one on the CPU unless it is told where."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    kinds = {a.name: str(a.type) for a in target._schema.arguments}
    return "device" in kinds and not any("Tensor" in kind for kind in kinds.values())


def _copy(out: torch.Tensor, tensor: torch.Tensor) -> None:
    out.copy_(tensor)


def _call(target: Any, number: int | None) -> Callable[..., None]:
    def run(out: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        made = target(*args, **kwargs)
        out.copy_(made if number is None else made[number])

    return run


def _part(target: Any, rest: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> View:
    return lambda tensor: target(tensor, *rest, **kwargs)[number]
