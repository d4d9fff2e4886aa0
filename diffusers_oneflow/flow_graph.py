"""oneflow.nn.Graph as this package needs it: its ops in program order, in one scope, served by the calling thread."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from . import engine
from .kernels import loader

# OneFlow builds one graph at a time ("cur job not leave"), and the graphs' activations share one arena,
# so graphs neither build nor run side by side.
ENGINE_LOCK = threading.RLock()
# Of queue.h's After.
_PACK, _OTHER, _END = 0, 1, 2


class KernelFailed(Exception):
    """A kernel refused its input, an index out of range say: torch has the right error for it."""


def chain(graph: Any) -> list[str]:
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
def graph_class() -> Any:
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
