"""Runs ATen ops as OneFlow graphs and judges the results by torch's."""

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils._pytree import tree_map_only

from diffusers_oneflow import engine, interop, kernels, passes
from diffusers_oneflow.capture import Program
from diffusers_oneflow.errors import Unsupported
from diffusers_oneflow.graph import CompiledGraph
from diffusers_oneflow.kernels import loader
from diffusers_oneflow.kernels.weights import WeightStore
from diffusers_oneflow.passes.quick_gelu import quick_gelu
from diffusers_oneflow.replay.device import Device
from diffusers_oneflow.replay.graph import ReplayGraph

# The ops that tests are parametrised with, and the tests of each.
covered: set[str] = set()
tests: dict[str, list[Callable]] = {}

# float32 may be 1.5 times as wrong as torch's float32; the floors are relative to the output's scale.
SLACK = 1.5
FLOOR = {torch.float32: 1e-6, torch.float64: 1e-13}
_PRODUCTS = {f"aten.{name}.default" for name in ("linear", "mm", "bmm", "addmm", "baddbmm", "matmul")}

_cases: list["Case"] = []


def for_ops(*names: str):
    """Parametrise a test with `op`, which it must pass to `check`: ``exp`` stands for ``aten.exp.default``.

    The calls of `check` in one test, in all examples of hypothesis, are nodes of one graph: OneFlow
    takes 20 ms to build one.
    """
    names = [name if "." in name else f"{name}.default" for name in names]
    names = [name if name.startswith("oneflow.") else f"aten.{name}" for name in names]
    covered.update(names)

    def decorate(test):
        for name in names:
            tests.setdefault(name, []).append(test)

        @functools.wraps(test)
        def collected(*args, op, **kwargs):
            _cases.clear()
            test(*args, op=op, **kwargs)
            assert op in {case.op for case in _cases}, f"{op} was not compared"
            judge(list(_cases))

        return pytest.mark.parametrize("op", names)(collected)

    return decorate


def calls(op: str) -> Iterator[list["Case"]]:
    """The calls that the tests of `op` compare, those of each test together."""
    for test in tests[op]:
        varied = [mark.args for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
        for values in itertools.product(*(values for _, values in varied)):
            _cases.clear()
            torch.manual_seed(0)
            test(op=op, **dict(zip((name for name, _ in varied), values)))
            yield list(_cases)


def check(op: str, *args, **kwargs):
    """Demand that OneFlow gives what torch gives: shapes, dtypes, and values within the criterion."""
    _cases.append(Case(op, args, kwargs))


def judge(cases: list["Case"]):
    """Run the cases as one graph, or one by one if that fails, and compare; again with the pack if it has a kernel for the op."""
    _judge(cases, False)
    engine.load()
    if cases and not loader.refusal() and kernels.find(cases[0].op)[0] is not None:
        _judge(cases, True)


def _judge(cases: list["Case"], native: bool):
    try:
        results = run(cases, native)
    except Exception:
        for case in cases:
            with case.named():
                run([case], native)
        raise
    for case, result in zip(cases, results):
        with case.named():
            exact = case.exact()
            assert len(result) == len(case.expected)
            for value, by_torch, true, terms in zip(result, case.expected, exact, case.terms() or exact):
                compare(value, by_torch, true, terms)


def refusal(op: str, *args, **kwargs) -> str:
    """Why the lowering refuses a case that torch takes."""
    with pytest.raises(Unsupported) as caught:
        run([Case(op, args, kwargs)])
    return caught.value.reason


class Weight:
    """Marks a tensor argument that the graph keeps, as it keeps a module's parameters."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


class Case:
    """One call of an op; tensors among its arguments, also in lists, are inputs of the graph, or weights.

    Args:
        narrow: the dtype that is judged by float64.
    """

    def __init__(self, op: str, args: tuple, kwargs: dict, narrow: torch.dtype = torch.float32):
        self.op, self.args, self.kwargs, self._narrow = op, args, kwargs, narrow
        args, kwargs = tree_map_only(Weight, lambda w: w.tensor, (args, kwargs))
        self.made = _target(op)(*args, **kwargs)
        self.expected = [self.made] if isinstance(self.made, torch.Tensor) else list(self.made)

    def exact(self) -> list[torch.Tensor]:
        """The outputs computed in float64."""
        widened = functools.partial(_widened, narrow=self._narrow)
        args, kwargs = tree_map_only((torch.Tensor, Weight, torch.dtype), widened, (self.args, self.kwargs))
        with _default_dtype(torch.float64):
            made = _target(self.op)(*args, **kwargs)
        return [made] if isinstance(made, torch.Tensor) else list(made)

    def terms(self) -> list[torch.Tensor] | None:
        """For sums of products, the sums of their absolute values: by them errors are bounded where a sum cancels."""
        if self.op not in _PRODUCTS:
            return None
        args, kwargs = tree_map_only(Weight, lambda w: w.tensor, (self.args, self.kwargs))
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.double().abs(), (args, kwargs))
        return [_target(self.op)(*args, **kwargs)]

    @property
    def target(self) -> Callable:
        """The op as torch calls it."""
        return _target(self.op)

    @contextlib.contextmanager
    def named(self):
        """Name the case in what fails."""
        try:
            yield
        except Exception as error:
            shown = tree_map_only((torch.Tensor, Weight), _shown, (self.args, self.kwargs))
            raise AssertionError(f"{self.op}{shown[0]} {shown[1] or ''}: {type(error).__name__}: {error}") from error


def run(cases: list[Case], native: bool = False, device: Device | None = None) -> list[list[torch.Tensor]]:
    """What OneFlow gives for each case, from one graph; also that it leaves its inputs alone and repeats itself.

    Args:
        native: with the kernel pack, where it has a kernel.
        device: where the cases' tensors are; the graph is replayed there, with `native` after the passes for the pack.

    Raises:
        Unsupported: a lowering refuses its case.
    """
    engine.load()
    builder = _Builder(cases)
    tensors = list(builder.inputs.values())
    before = list(map(_bits, tensors))
    graph = builder.compiled(native) if device is None else builder.replayed(native, device)
    try:
        first, second = graph(tensors), graph(tensors)
    finally:
        graph.close()
    assert list(map(_bits, tensors)) == before, "an input was changed"
    assert list(map(_bits, first)) == list(map(_bits, second)), "the second call differs from the first"
    given = iter(first)
    return [[next(given) for _ in case.expected] for case in cases]


class _Builder:
    """A program of independent calls."""

    def __init__(self, cases: list[Case]):
        self.graph = torch.fx.Graph()
        self.inputs: dict[str, torch.Tensor] = {}
        self.weights: dict[str, torch.Tensor] = {}
        arguments = [tree_map_only((torch.Tensor, Weight), self._placeholder, (c.args, c.kwargs)) for c in cases]
        # A graph has to have an input that is used: ops that make tensors from nothing get one beside them.
        spare = self._placeholder(torch.ones(1, device=cases[0].expected[0].device))
        self.outputs: list[torch.fx.Node] = []
        for case, (args, kwargs) in zip(cases, arguments):
            call = self._call(_target(case.op), args, kwargs, case.made)
            if isinstance(case.made, torch.Tensor):
                self.outputs.append(call)
            else:
                self.outputs += [self._call(operator.getitem, (call, i), {}, v) for i, v in enumerate(case.made)]
        self.outputs.append(self._call(torch.ops.aten.neg.default, (spare,), {}, torch.ones(1)))
        self.graph.output(tuple(self.outputs))

    def _placeholder(self, value) -> torch.fx.Node:
        node = self.graph.placeholder(f"arg{len(self.inputs) + len(self.weights)}")
        kept = isinstance(value, Weight)
        tensor = value.tensor if kept else value
        (self.weights if kept else self.inputs)[node.name] = tensor
        node.meta["val"] = tensor
        return node

    def _call(self, function, args, kwargs, made) -> torch.fx.Node:
        node = self.graph.call_function(function, tuple(args), kwargs)
        node.meta["val"] = made
        return node

    def _program(self) -> Program:
        return Program(self.graph, list(self.inputs), {n: n for n in self.weights}, {}, self.outputs, None)

    def replayed(self, native: bool, device: Device) -> ReplayGraph:
        program = self._program()
        if native:
            passes.run(program, native=True)
        constants = {name: constant.to(device.torch) for name, constant in program.constants.items()}
        weights = {name: self.weights[name] for name in program.weights}
        return ReplayGraph(program, weights | constants, list(self.inputs.values()), device)

    def compiled(self, native: bool) -> CompiledGraph:
        program = self._program()
        store = WeightStore("shared") if native else None
        bound = {}
        for name, tensor in self.weights.items():
            view, order = interop.flow_view(tensor)
            bound[name] = interop.Weight(tensor, (interop.to_flow(view), order), store)
        return CompiledGraph(program, bound, list(self.inputs.values()), store=store)


def compare(result: torch.Tensor, by_torch: torch.Tensor, exact: torch.Tensor, terms: torch.Tensor | None = None):
    """Assert that `result` is as good as torch's, judged by `exact`, the same in float64; `terms` give errors their scale."""
    assert tuple(result.shape) == tuple(by_torch.shape)
    assert result.dtype == by_torch.dtype
    if not by_torch.dtype.is_floating_point:
        torch.testing.assert_close(result, by_torch, rtol=0, atol=0)
        return
    finite = by_torch.isfinite()
    torch.testing.assert_close(result[~finite], by_torch[~finite], rtol=0, atol=0, equal_nan=True)
    floor = FLOOR[result.dtype]
    result, by_torch, exact, terms = (t[finite].double() for t in (result, by_torch, exact, exact if terms is None else terms))
    if not result.numel():
        return
    assert result.isfinite().all(), "not finite where torch's result is"
    for measure in (_largest, _root_mean_square):
        scale = measure(terms)
        error, allowed = measure(result - exact), max(SLACK * measure(by_torch - exact), floor * scale)
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}, scale {scale:.3g} ({measure.__name__})"


def _largest(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item()


def _root_mean_square(tensor: torch.Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def _target(op: str):
    """The callable behind an op's name."""
    if op == "oneflow.quick_gelu.default":
        return quick_gelu
    _, name, overload = op.split(".")
    return getattr(getattr(torch.ops.aten, name), overload)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype):
    """What integers become in ops that give floats."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _widened(value, narrow: torch.dtype):
    """A tensor of the dtype `narrow`, or that dtype as an argument, in float64; of float32, too."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value in (narrow, torch.float32) else value
    tensor = value.tensor if isinstance(value, Weight) else value
    return tensor.double() if tensor.dtype in (narrow, torch.float32) else tensor


def _bits(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes: NaN equals NaN, and -0.0 is not 0.0."""
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).cpu().numpy().tobytes()


def _shown(value) -> str:
    tensor = value.tensor if isinstance(value, Weight) else value
    kind = "weight" if isinstance(value, Weight) else "tensor"
    shown = f"{kind} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} strides {tensor.stride()}"
    return f"{shown} {tensor.tolist()}" if tensor.numel() < 8 else shown
