"""Programs that OneFlow plans and a device of torch's replays: the way to a GPU, walked on the CPU."""

import contextlib

import pytest
import torch
from torch import nn

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig, budget, building, capture, lowering, passes, serialize, signature
from diffusers_oneflow.backend import attach, dispatcher_of
from diffusers_oneflow.capture import as_it_is
from diffusers_oneflow.errors import Unsupported
from diffusers_oneflow.graph import GraphClosed
from diffusers_oneflow.replay import devices, nvidia, plan
from diffusers_oneflow.replay.device import Plain
from diffusers_oneflow.replay.graph import ReplayGraph
from diffusers_oneflow.replay.lowering import Lowered
from diffusers_oneflow.replay.values import Step, refs


class OnPlain:
    """A device of its own name, with torch's ops on the CPU: what another chip has to bring."""

    def __init__(self):
        self.plain, self.captured, self.finished, self.required = Plain("cpu"), 0, 0, []
        self.torch, self.find, self.turn = self.plain.torch, self.plain.find, self.plain.turn

    def capture(self, run, preparations=(), here=(), kernels=()):
        self.captured += 1
        return run

    def wake(self):
        pass

    def require(self, size):
        self.required.append(size)

    def finish(self):
        self.finished += 1


def program_of(module: nn.Module, *tensors: torch.Tensor) -> capture.Program:
    def rebuild(given):
        return tuple(given), {}

    with torch.no_grad():
        made = capture.capture(module, list(tensors), rebuild, signature.flatten, lowering.is_lowered, as_it_is)
    passes.run(made, native=True)
    return made


def graph_of(module: nn.Module, *tensors: torch.Tensor, device=None) -> ReplayGraph:
    made = program_of(module, *tensors)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    weights = {name: held[q].detach() for name, q in made.weights.items()} | made.constants
    return ReplayGraph(made, weights, list(tensors), device or Plain("cpu"))


class Block(nn.Module):
    """Convolution, norm, attention, views, a skip connection."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.norm, self.qkv, self.proj = nn.GroupNorm(4, 16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x, scale):
        h = torch.nn.functional.silu(self.norm(self.conv(x)))
        b, c, height, width = h.shape
        q, k, v = self.qkv(h.flatten(2).transpose(1, 2)).chunk(3, -1)
        a = nn.functional.scaled_dot_product_attention(*(t.unflatten(-1, (4, 4)).transpose(1, 2) for t in (q, k, v)))
        a = self.proj(a.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(b, c, height, width)
        return self.out(torch.cat([h, a[:, :, ::1].contiguous()], 1)) * scale, a[:, 2:5].permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return Block().eval()


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, generator=generator), torch.rand(2, 1, 1, 1, generator=generator)


def error(made, expected) -> float:
    return ((made.double() - expected).norm() / expected.norm()).item()


def test_a_replayed_graph_is_as_near_to_float64_as_torch(block):
    graph = graph_of(block, *inputs())
    for seed in range(3):
        given = inputs(seed)
        before = [t.clone() for t in given]
        with torch.no_grad():
            stock = block(*given)
            wide = block.double()(*(t.double() for t in given))
            block.float()
        for made, mine, expected in zip(graph(list(given)), stock, wide):
            assert made.shape == mine.shape and made.dtype == mine.dtype
            assert error(made, expected) <= max(1.5 * error(mine, expected), 1e-6)
        assert all(torch.equal(a, b) for a, b in zip(before, given))


def test_results_are_new_tensors(block):
    graph = graph_of(block, *inputs())
    first = graph(list(inputs()))
    kept = [t.clone() for t in first]
    graph(list(inputs(1)))
    assert all(torch.equal(a, b) for a, b in zip(first, kept))


def lifetimes(steps: list[Step], outputs) -> list[int]:
    """The last step that reads each step's result; results that leave are read after all."""
    last = list(range(len(steps)))
    for step in steps:
        for ref in refs(step.args):
            if isinstance(ref.source, Step):
                last[ref.source.number] = max(last[ref.source.number], step.number)
    for ref in outputs:
        last[ref.source.number] = len(steps)
    return last


def clashes(graph: ReplayGraph, offsets: list[int]) -> list[tuple[int, int]]:
    """Pairs of steps whose results lie on the same bytes at the same time."""
    steps = graph.steps
    last = lifetimes(steps, [r for r in graph._sources if not isinstance(r, int)])
    spans = [(o, o + s.like.nbytes) for o, s in zip(offsets, steps)]
    return [
        (i, j) for j in range(len(steps)) for i in range(j)
        if last[i] >= j and spans[i][0] < spans[j][1] and spans[j][0] < spans[i][1]
    ]  # fmt: skip


def test_the_plan_keeps_apart_what_lives_at_the_same_time_and_shares_the_rest(block):
    graph = graph_of(block, *inputs())
    assert clashes(graph, graph.plan.offsets) == []
    assert graph.plan.bytes < graph.plan.unplanned / 1.5
    assert clashes(graph, [0] * len(graph.steps))  # the check sees a wrong plan


def test_a_device_is_asked_for_the_whole_run_once(block):
    device = OnPlain()
    graph = graph_of(block, *inputs(), device=device)
    graph(list(inputs()))
    graph(list(inputs(1)))
    assert device.captured == 1


def test_a_device_may_bring_kernels_of_its_own(block):
    class Doubling(OnPlain):
        def __init__(self):
            super().__init__()
            self.find = {"oneflow.conv2d.default": self.convolution}.get

        def convolution(self, lowered, node, *args):
            made = node.meta["val"]

            def run(out, *given):
                out.copy_(2 * node.target(*given))

            return lowered.step(node, run, args, made.shape, made.dtype, "twice")

    module = nn.Conv2d(3, 4, 3)
    x = inputs()[0]
    graph = graph_of(module, x, device=Doubling())
    with torch.no_grad():
        torch.testing.assert_close(graph([x])[0], 2 * module(x))
    assert graph.kernels["oneflow.conv2d.default"] == {"twice": 1}


def test_weights_are_read_where_they_are(block):
    module = nn.Linear(5, 3)
    x = torch.randn(2, 5)
    graph = graph_of(module, x)
    module.weight.data += 1
    with torch.no_grad():
        torch.testing.assert_close(graph([x])[0], module(x))


def test_bool_numbers_and_inputs_that_come_back():
    class Odd(nn.Module):
        def forward(self, x, mask, n):
            return x.masked_fill(mask, 0.0) * n, mask.logical_not(), x, x[:, 1:].transpose(0, 1)

    given = [torch.randn(3, 4), torch.rand(3, 4) > 0.5, torch.tensor(2.0)]
    graph = graph_of(Odd(), *given)
    expected = Odd()(*given)
    made = graph(list(given))
    assert made[2] is given[0]
    for a, b in zip(made, expected):
        torch.testing.assert_close(a, b)


def test_a_closed_graph_waits_for_its_runs_and_says_so(block):
    device = OnPlain()
    graph = graph_of(block, *inputs(), device=device)
    graph.close()
    graph.close()
    assert device.finished == 1
    with pytest.raises(GraphClosed):
        graph(list(inputs()))


def test_an_op_without_a_lowering_is_refused_with_its_place():
    class Sorts(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    with pytest.raises(Unsupported, match="linalg"):
        graph_of(Sorts(), torch.eye(3))


def test_a_lost_record_is_an_error(block, monkeypatch):
    pack = plan.loader.pack()

    class Losing:
        def take_records(self):
            return pack.take_records()[1:]

    monkeypatch.setattr(plan.loader, "pack", Losing)
    with pytest.raises(plan.OneFlowError, match="other steps"):
        graph_of(block, *inputs())


@pytest.mark.parametrize("device, kernels, reason", [
    ("xpu", "native", "runs on the CPU and on CUDA"), ("cuda", "oneflow", "without the kernel pack"),
])  # fmt: skip
def test_devices_that_are_refused_say_why(device, kernels, reason):
    assert reason in devices.refusal(torch.device(device), OneFlowConfig(kernels=kernels))


def test_another_chip_joins_under_its_name(monkeypatch):
    """What it has to bring, in whole: a `Device`, and where there is one. Its tensors are the CPU's here, for want of a chip."""
    monkeypatch.setattr(devices, "_KINDS", dict(devices._KINDS))
    monkeypatch.setattr(devices, "_MADE", dict(devices._MADE))
    made = []

    class Chip(OnPlain):
        def __init__(self, device):
            super().__init__()
            made.append(device)

        def find(self, op):
            return None  # no kernels of its own: torch's ops run there

    here, config = torch.device("xpu", 1), OneFlowConfig()
    assert "runs on the CPU and on CUDA" in devices.refusal(here, config)
    devices.register("xpu", Chip, lambda device, config: None if device.index else f"a model on {device}: it is for drawing")
    assert devices.refusal(here, config) is None and "for drawing" in devices.refusal(torch.device("xpu", 0), config)
    assert "without the kernel pack" in devices.refusal(here, OneFlowConfig(kernels="oneflow"))
    plain, device = devices.device_for(torch.device("cpu")), devices.device_for(here)
    assert isinstance(device, Chip) and devices.device_for(here) is device and made == [here]
    module, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8)).eval(), torch.randn(3, 4)
    with torch.no_grad():
        assert error(graph_of(module, x, device=device)([x])[0], module(x)) < 1e-5
    devices.register("xpu", Chip)
    # Graphs of other devices go on in one order.
    assert devices.device_for(here) is not device and devices.device_for(torch.device("cpu")) is plain


def test_without_a_compiler_triton_is_of_no_use(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    device = torch.device("cuda")
    assert "no C compiler" in devices.refusal(device, OneFlowConfig())
    monkeypatch.setenv("CC", "/somewhere/cc")
    assert devices.refusal(device, OneFlowConfig()) is None


def test_graphs_on_a_gpu_can_be_switched_off():
    assert "OneFlowConfig(cuda=False)" in devices.refusal(torch.device("cuda"), OneFlowConfig(cuda=False))


def test_a_module_runs_through_its_dispatcher(block, monkeypatch):
    """As on a GPU, but for the device: the dispatcher takes the way of other devices than the CPU."""
    monkeypatch.setattr(building.Builder, "compile", building.Builder.compile_elsewhere)
    attach(block, "block", OneFlowConfig(fallback="error", progress=False, cache=None))
    try:
        with torch.no_grad():
            made = block(*inputs())
            expected = block.forward(*inputs())
        (entry,) = dispatcher_of(block).entries
        assert isinstance(entry.graph, ReplayGraph)
        for a, b in zip(made, expected):
            torch.testing.assert_close(a, b)
    finally:
        dispatcher_of(block).close()
        from diffusers_oneflow.backend import detach

        detach(block)


def test_room_is_asked_for_before_anything_is_captured(block):
    class Full(OnPlain):
        def require(self, size):
            super().require(size)
            raise torch.OutOfMemoryError("planted")

    device = Full()
    with pytest.raises(torch.OutOfMemoryError):
        graph_of(block, *inputs(), device=device)
    made = graph_of(block, *inputs())
    outputs = sum(t.nbytes for t in made(list(inputs())))
    assert device.captured == 0 and device.required == [made.plan.bytes + outputs]


def test_where_memory_is_short_all_other_graphs_go(block, monkeypatch):
    class Short(OnPlain):
        full = True

        def capture(self, run, preparations=(), here=(), kernels=()):
            if self.full and self.captured:
                self.full = False
                raise torch.OutOfMemoryError("planted")
            return super().capture(run)

    device = Short()
    monkeypatch.setattr(devices, "device_for", lambda where: device)
    monkeypatch.setattr(building.Builder, "compile", building.Builder.compile_elsewhere)
    monkeypatch.setattr(budget, "_owners", type(budget._owners)())
    module = diffusers_oneflow.compile(nn.Conv2d(3, 4, 3).eval(), OneFlowConfig(fallback="error", cache=None))
    with torch.no_grad():
        for size in (8, 10):
            x = torch.randn(1, 3, size, size)
            torch.testing.assert_close(module(x), module._call_impl(x))
    assert [e.shapes for e in dispatcher_of(module).entries] == [["(1, 3, 10, 10) float32"]]


def test_what_names_another_device_is_on_the_graphs(block):
    class Moves(nn.Module):
        def forward(self, x):
            return x.to("cpu", torch.float64) + x + x.new_full((3,), 2.0) * x.new_full((3,), 2.0, device="cpu").exp()

    made = program_of(Moves(), torch.randn(3))
    there = torch.device("meta")  # torch would have nothing to add
    named = 0
    for node in made.graph.nodes:
        args = tuple(there if isinstance(a, torch.device) else a for a in node.args)
        kwargs = {k: there if isinstance(v, torch.device) else v for k, v in node.kwargs.items()}
        named += (args, kwargs) != (node.args, node.kwargs)
        node.args, node.kwargs = args, kwargs
    assert named
    graph = ReplayGraph(made, {}, [torch.randn(3)], Plain("cpu"))
    torch.testing.assert_close(graph([torch.ones(3)])[0], Moves()(torch.ones(3)))


@pytest.mark.parametrize("kwargs", [{}, {"dtype": torch.int64}, {"device": torch.device("cpu")}, {"device": "cpu"}])
def test_what_the_code_makes_is_made_where_the_graph_is(kwargs):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3)
    full = graph.call_function(torch.ops.aten.full.default, ([3], 2), kwargs)
    moved = graph.call_function(torch.ops.aten.to.device, (x, torch.device("cpu"), torch.float16))
    for node, dtype in ((full, torch.float32), (moved, torch.float16)):
        node.meta["val"] = torch.empty(3, dtype=dtype)
    graph.output((full, moved))
    made = capture.Program(graph, ["x"], {}, {}, [full, moved], None)
    lowered = Lowered(made, {}, {"x": torch.empty(3, device="meta")}, Plain("meta"))
    (_, of_full), (of_moved, _) = (step.args for step in lowered.steps)
    assert of_full["device"] == of_moved[1] == torch.device("meta")


class LeavesOnCpu(nn.Module):
    def forward(self, x, n):
        return x.sin(), n + 1, (n * 2.0).exp()


def test_what_torch_leaves_on_the_cpu_is_noted_and_survives_the_passes_and_the_disk():
    tensors = [torch.ones(3), torch.arange(3)]
    made = program_of(LeavesOnCpu(), *tensors)
    assert made.on_cpu == [True] * 3
    made.on_cpu = [False, True, True]  # as on a GPU
    passes.run(made, native=True)
    read, _ = serialize.loads(serialize.dumps(made))
    assert read.on_cpu == [False, True, True]
    graph = ReplayGraph(read, {}, tensors, Plain("cpu"))
    assert graph._on_cpu == read.on_cpu
    for ours, expected in zip(graph(tensors), LeavesOnCpu()(*tensors)):
        torch.testing.assert_close(ours, expected)


def test_kernels_of_triton_are_prepared_by_themselves(monkeypatch):
    from diffusers_oneflow.replay import cuda

    class Collecting(OnPlain):
        def __init__(self):
            super().__init__()
            self.find, self.aside = cuda.TABLE.get, self.plain.aside

        def capture(self, run, preparations=(), here=(), kernels=()):
            self.given = [[p.func for p in group] for group in (preparations, here, kernels)]
            raise torch.OutOfMemoryError("planted")

    device, module = Collecting(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3)).eval()
    with pytest.raises(torch.OutOfMemoryError):
        graph_of(module, torch.randn(1, 3, 8, 8), device=device)
    preparations, here, kernels = device.given
    assert [f.__self__.__class__.__name__ for f in preparations] == ["Ways"] * 2 and not here
    assert [type(f).__name__ for f in kernels] == ["GroupNorm"]


def test_a_gpu_prepares_all_of_them(monkeypatch):
    from diffusers_oneflow.replay.cuda import ahead, flash

    done = []
    monkeypatch.setattr(flash, "able", lambda device: False)  # whatever is installed here
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("waited"))
    monkeypatch.setattr(ahead, "compile_ahead", lambda launches: lambda: done.append("compiled"))
    one, two, three = (lambda name=name: done.append(name) for name in ("library", "here", "kernel"))
    nvidia.Cuda("cuda")._prepare([one], [two], [three])
    assert sorted(done) == ["compiled", "here", "kernel", "library", "waited"]
    assert done.index("compiled") < done.index("kernel") < done.index("waited")
