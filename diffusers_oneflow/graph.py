"""One captured program as one oneflow.nn.Graph."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from . import engine, interop
from .capture import Program, is_bookkeeping, op_name, where
from .errors import OneFlowError, Refused, Unsupported
from .kernels import loader
from .ports import Inputs, Outputs
from .progress import Stage

if TYPE_CHECKING:
    from .kernels.weights import WeightStore

# OneFlow builds one graph at a time ("cur job not leave"), and the graphs' activations share one arena,
# so graphs neither build nor run side by side.
ENGINE_LOCK = threading.RLock()
_ids = itertools.count(1)


@dataclass(frozen=True)
class Memory:
    """Bytes of one graph.

    Attributes:
        activations: the part of the shared arena that it uses.
        unplanned: what its activations would take without reuse.
        owned: inputs, outputs and control registers, its alone.
    """

    activations: int
    unplanned: int
    owned: int


@dataclass(frozen=True)
class Place:
    """Where an op of the pack comes from.

    Attributes:
        op: the program's op (``aten.layer_norm.default``).
        kernel: the pack's (``dfo_layer_norm``).
        where: module path and source line.
        bytes: what the op reads and writes, weights included.
    """

    op: str
    kernel: str
    where: str
    bytes: int


class KernelFailed(Exception):
    """A kernel refused its input, an index out of range say: torch has the right error for it."""


class GraphClosed(Exception):
    """The graph was dropped between being found and being run; look for it again."""


class CompiledGraph:
    """A program that OneFlow has compiled for one set of shapes.

    Args:
        program: what to run.
        weights: placeholder name -> `interop.Weight`.
        examples: one torch tensor per input, for shapes and dtypes.
        store: the weights for the kernel pack (`kernels.weights.WeightStore`), whose kernels then run what they can.
        stage: called with ("lowering" | "compiling", fraction done) as the build goes on.

    Raises:
        Unsupported: an op or a dtype that has no lowering; the message has op, module path and source line.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        program: Program,
        weights: dict[Any, Any],
        examples: list[torch.Tensor],
        stage: Stage = lambda name, done: None,
        store: WeightStore | None = None,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self.kernels: dict[str, Counter[str]] = {}
        self.places: dict[str, Place] = {}
        self._noted: list[Place] = []
        self.store = store
        self._id = next(_ids)
        self._inputs, self._outputs = Inputs(program, examples), Outputs(program)
        if not self._inputs.names or not self._outputs.computed:
            raise Unsupported("a graph", "no output depends on an input tensor")
        with ENGINE_LOCK:
            self._build(program, weights, self._inputs.enter(examples), stage, store is not None)
            if store is not None:
                store.watch()
        self._finalizer = weakref.finalize(self, _release, self._graph, self._id)
        self._finalizer.atexit = False

    def _build(
        self,
        program: Program,
        weights: dict[str, interop.Weight],
        inputs: list[Any],
        stage: Stage,
        use_pack: bool,
    ) -> None:
        names = self._inputs.names
        ran = functools.partial(self._note, use_pack)
        graph = _graph_class()(functools.partial(_lower, program, names, self._outputs.computed, weights, stage, use_pack, ran))
        native = engine.native()
        start = time.perf_counter()
        try:
            graph.build_graph(*inputs)
            self.places = dict(zip(_chain(graph), self._noted))
            graph.serves = bool(self.places)
            lowered = time.perf_counter()
            stage("compiling", 0.0)
            native.begin_graph(self._id)
            try:
                graph.finish()
            finally:
                report = native.end_graph()
        finally:
            # Also of a build that failed: a later one would end the process.
            native.drop_leftovers(graph.name)
        stage("compiling", 1.0)
        self.seconds = {"lowering": lowered - start, "compiling": time.perf_counter() - lowered}
        self.memory = Memory(report["planned"], report["unplanned"], report["owned"])
        graph.forget_source()
        self._graph = graph

    def _note(self, native: bool, node: torch.fx.Node) -> None:
        """Remember which kernels run a node that was just lowered."""
        ops = []
        if native:
            from .kernels.node import made

            ops = made.copy()
            made.clear()
        size = _bytes(node) + sum(map(_bytes, node.all_input_nodes))
        self._noted += [Place(op_name(node), kind, where(node), size // len(ops)) for kind in ops]
        self.kernels.setdefault(op_name(node), Counter()).update(ops or ["OneFlow's own"])

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run on CPU tensors of any strides, one per input of the program, unchanged afterwards.

        Returns new tensors, and an input itself where the module handed it back.

        Raises:
            GraphClosed: another thread has dropped the graph.
            KernelFailed: a kernel refused its input.
        """
        with ENGINE_LOCK:
            if not self._finalizer.alive:
                raise GraphClosed
            if self.store is not None:
                self.store.refresh()
            leaving = self._outputs.leave()
            self._graph.run(self._inputs.enter(tensors), [result for _, result, _ in leaving])
            return self._outputs.collect(tensors, leaving)

    def close(self) -> None:
        """Free the graph's memory now."""
        self._finalizer()


def _release(graph: Any, graph_id: int) -> None:
    """Free what a graph owns: first its C++ object, then the memory that this one used."""
    with ENGINE_LOCK:
        graph.destroy()
        engine.native().release_graph(graph_id)
        engine.native().drop_registers(graph.name)


def _bytes(node: torch.fx.Node) -> int:
    made = node.meta.get("val")
    return made.nbytes if isinstance(made, torch.Tensor) else 0


def _chain(graph: Any) -> list[str]:
    """Make the ops run in program order, by control edges: the arena's plan depends on it. Returns the names of the pack's.

    The pack's kernels are also told what follows them (queue.h): those that something else reads, or runs after, wait.
    """
    job = graph._full_graph_proto
    pack = loader.registered()
    ops = [op for op in job.net.op if op.HasField("user_conf")]
    read = {name.split("/")[0] for op in job.net.op if op.HasField("output_conf") for name in [getattr(op.output_conf, "in")]}
    last = max((i for i, op in enumerate(ops) if op.user_conf.op_type_name in pack), default=None)
    for op in job.net.op:
        op.loc = ""
    for i, op in enumerate(ops):
        if i and ops[i - 1].name not in op.ctrl_in_op_name:
            op.ctrl_in_op_name.append(ops[i - 1].name)
        if op.user_conf.op_type_name in pack:
            other = op.name in read or (i + 1 < len(ops) and ops[i + 1].user_conf.op_type_name not in pack)
            op.user_conf.attr["after"].at_int64 = _END if i == last else _OTHER if other else _PACK
    graph._full_graph_proto = job
    return [op.name for op in ops if op.user_conf.op_type_name in pack]


# Of queue.h's After.
_PACK, _OTHER, _END = 0, 1, 2


def _lower(
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


@contextlib.contextmanager
def _shared_scope() -> Iterator[None]:
    """Build ops in one scope for all graphs, instead of the graph's own.

    OneFlow keeps the conf of every op that was ever built, and confs alike but for the scope are not shared:
    half a megabyte for each graph of 200 layers.
    """
    from oneflow.framework import graph_build_util

    own = engine.flow()._oneflow_internal.GetCurrentScope()
    with graph_build_util.BlockScopeContext(own, _scope()):
        yield


@functools.cache
def _scope() -> Any:
    from google.protobuf import text_format
    from oneflow.core.job.job_conf_pb2 import JobConfigProto

    flow = engine.flow()
    conf = JobConfigProto(job_name="diffusers_oneflow")
    conf.predict_conf.SetInParent()
    return flow._oneflow_internal.MakeInitialScope(text_format.MessageToString(conf), flow.placement("cpu", [0]), False)


@functools.cache
def _graph_class() -> Any:
    """The nn.Graph that lowers a program when it is built; defined late, since it needs OneFlow."""
    flow = engine.flow()
    run_graph, sync = flow._oneflow_internal.nn.graph, flow._oneflow_internal.eager.Sync
    from oneflow.core.job.job_pb2 import Job as job_class
    from oneflow.framework.tensor_tuple_util import convert_to_tensor_tuple

    pack = loader.pack()

    class ProgramGraph(flow.nn.Graph):  # type: ignore[name-defined,misc]  # oneflow has no types
        # nn.Graph prints what it also raises.
        _Graph__print = staticmethod(lambda *args, **kwargs: None)

        def __init__(self, lower: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
            super().__init__()
            # Past nn.Graph's own __setattr__, which takes modules only.
            self.__dict__["_lower"] = lower
            # Whether kernels of the pack wait to be served by the calling thread.
            self.__dict__["serves"] = False

        def build(self, *args: Any) -> tuple[Any, ...]:
            with _shared_scope():
                return cast(tuple[Any, ...], self._lower(args))

        def finish(self) -> None:
            """Compile and make the runtime: nn.Graph's own way to do it copies the compiled job to Python as well."""
            sync()
            self._c_nn_graph.complie_and_init_runtime()
            self._is_compiled = True

        def run(self, tensors: list[Any], results: list[Any]) -> None:
            """Fill the OneFlow tensors `results` from `tensors`; returns when that is done."""
            results = convert_to_tensor_tuple(results)
            run_graph.SoftSyncNNGraphBuffers(results, self._c_nn_graph)
            if self.serves:
                pack.open()
            run_graph.RunLazyNNGraph(convert_to_tensor_tuple(tensors), results, self._state_tensor_tuple, self._c_nn_graph)
            failure = None
            try:
                if self.serves:
                    pack.serve()
            except RuntimeError as error:  # what a kernel says against its input
                failure = error
            run_graph.SoftSyncNNGraphBuffers(results, self._c_nn_graph)
            sync()
            if failure is not None:
                raise KernelFailed(str(failure))

        def forget_source(self) -> None:
            """Drop what only building needs."""
            self._forward_job_proto = self._full_job_proto = self._compiled_job_proto = None
            self._outputs_tensor_tuple_buffer = self._eager_outputs_buffer = self._outputs_tensor_tuple = None
            self._eager_outputs = self.__dict__["_lower"] = None
            empty = job_class()
            empty.job_conf.job_name = self.name
            self._c_nn_graph.job = empty.SerializeToString()

        def destroy(self) -> None:
            """Let go of the C++ graph and of the weights."""
            sync()
            self._c_nn_graph: Any = None
            self._state_tensor_tuple = None

    return ProgramGraph
