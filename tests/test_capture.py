"""From modules to programs."""

import collections
import threading

import numpy as np
import pytest
import torch

import diffusers_oneflow
from diffusers_oneflow import lowering, signature
from diffusers_oneflow.capture import _spell_out_diagonals, capture, op_name
from diffusers_oneflow.errors import Unsupported
from diffusers_oneflow.parity import component
from diffusers_oneflow.provenance import where
from diffusers_oneflow.state import _held, twin


def program_of(module, *tensors, **options):
    flat = signature.flatten((tensors, options), open_numbers=True)

    def rebuild(given):
        return signature.rebuild_call(flat.spec, given)

    with torch.no_grad():
        return capture(module, flat.tensors, rebuild, signature.flatten, lowering.is_lowered)


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        return {"out": self.inner(x) + self.shift * torch.tensor([1.0, 2.0, 3.0])}


def test_every_tensor_has_a_source():
    program = program_of(Outer(), torch.randn(2, 3))
    assert len(program.inputs) == 1
    assert set(program.weights.values()) == {"inner.weight", "inner.bias", "shift"}
    assert [c.tolist() for c in program.constants.values()] == [[1.0, 2.0, 3.0]]
    assert program.result.spec[0] == "dict"


def test_a_node_knows_its_module_and_line():
    node = next(n for n in program_of(Outer(), torch.randn(2, 3)).graph.nodes if "linear" in op_name(n))
    assert where(node).startswith("inner, linear.py:")


def test_what_is_not_lowered_is_decomposed():
    class Outer_(torch.nn.Module):
        def forward(self, x):
            return torch.einsum("ij,kj->ik", x, x)

    ops = {op_name(n) for n in program_of(Outer_(), torch.randn(2, 3)).graph.nodes if n.op == "call_function"}
    assert "aten.einsum.default" not in ops
    assert all(map(lowering.is_lowered, ops))


def test_tracing_leaves_the_module_as_it_was():
    module = Outer()
    before = {k: dict(v) if isinstance(v, dict) else v for k, v in module.__dict__.items()}
    weight = module.inner.weight
    program_of(module, torch.randn(2, 3))
    assert {k: dict(v) if isinstance(v, dict) else v for k, v in module.__dict__.items()} == before
    assert module.inner.weight is weight


def test_a_twin_shares_every_tensor():
    module = Outer()
    other = twin(module)
    assert other is not module
    tensors, others = (m.state_dict(keep_vars=True).values() for m in (module, other))
    assert [a is b for a, b in zip(tensors, others)] == [True] * 3


class Slotted:
    __slots__ = ("value",)


def test_a_twin_shares_tensors_however_deep_they_are_held():
    module, tensor = Outer(), torch.ones(2)
    module.slotted, module.order, module.deep = Slotted(), collections.deque([tensor.clone()]), tensor.clone()
    module.slotted.value = tensor
    for _ in range(10):
        module.deep = {"deeper": [module.deep]}
    other = twin(module)
    assert other.slotted.value is tensor and other.order[0] is module.order[0]
    held = module.deep, other.deep
    for _ in range(10):
        held = [deep["deeper"][0] for deep in held]
    assert isinstance(held[0], torch.Tensor) and held[0] is held[1]


def test_another_thread_may_call_modules_meanwhile():
    module, failures, stop = Outer(), [], threading.Event()

    def call():
        x = torch.ones(1, 3)
        expected = module(x)["out"]
        while not stop.is_set():
            try:
                if not torch.equal(module(x)["out"], expected):
                    failures.append("another result")
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(3):
        program_of(module, torch.randn(2, 3))
    stop.set()
    thread.join()
    assert not failures


def test_a_module_that_keeps_count_is_refused():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x + 1

    with pytest.raises(Exception, match="stateful module"):
        program_of(Counting(), torch.ones(2))


@pytest.mark.parametrize(
    "keep",
    [
        lambda m: m.seen.append(1), lambda m: m.options.update(n=2), lambda m: m.object.seen.append(1),
        lambda m: m.names.add("b"), lambda m: m.order.append(1), lambda m: setattr(m.slotted, "value", 1),
        lambda m: m.array.fill(1), lambda m: m.deep[0][0][0][0][0][0].append(1),
    ],
)  # fmt: skip
def test_a_module_that_writes_into_what_it_holds_is_refused(keep):
    class Holder:
        def __init__(self):
            self.seen = []

    class Keeping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.options, self.object = [], {"n": 1}, Holder()
            self.names, self.order, self.slotted, self.array = {"a"}, collections.deque(), Slotted(), np.zeros(2)
            self.deep = [[[[[[[]]]]]]]

        def forward(self, x):
            keep(self)
            return x + 1

    with pytest.raises(Unsupported, match="stateful module"):
        program_of(Keeping(), torch.ones(2))


def test_a_filled_diagonal_of_a_part_is_captured():
    """The mask of perturbed attention in Stable Diffusion 3: torch cannot make its own op functional here."""

    class Masked(torch.nn.Module):
        def forward(self, x):
            mask = torch.zeros(x.shape[0], x.shape[0])
            mask[:3, :3] = -1.0
            mask[:3, :3].fill_diagonal_(0)
            return x + mask

    module = Masked().eval()
    assert component(module, (torch.randn(5, 5),), {}).passed


def test_a_filled_diagonal_is_made_where_the_matrix_is():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    filled = graph.call_function(torch.ops.aten.fill_diagonal_.default, (x, 0))
    graph.output(filled)
    x.meta["val"] = filled.meta["val"] = torch.empty(3, 3, device="meta")
    _spell_out_diagonals(graph)
    makers = [n for n in graph.nodes if n.target is torch.ops.aten.arange.default]
    assert len(makers) == 2 and all(n.kwargs["device"] == torch.device("meta") for n in makers)


class Remembers(torch.nn.Module):
    """As the VAE of Wan does: the caller keeps the list from call to call."""

    def forward(self, x, cache):
        if cache[0] is not None:
            x = x + cache[0]
        cache[0] = x
        return x


class TakesOut(torch.nn.Module):
    def forward(self, x, parts):
        return x + parts.pop()


def test_a_module_that_writes_into_a_list_it_is_given_runs_in_torch():
    module = Remembers().eval()
    x = torch.randn(3)
    with pytest.raises(Unsupported, match="puts something into a list"):
        component(module, (x, [None]), {})
    assert component(TakesOut().eval(), (x, [x]), {}).passed


class Keeping(torch.nn.Module):
    """Keeps something where its attention processors would: in a plain object."""

    class Place:
        value = None

    def __init__(self, keep):
        super().__init__()
        self.place, self.keep = self.Place(), keep
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        y = self.linear(x)
        self.place.value = self.keep(y)
        return y


@torch.no_grad()
def test_a_module_that_keeps_what_it_computes_is_refused():
    """Also where it has kept a tensor before, of which a graph would leave the old one."""
    for module in (Keeping(lambda y: y), Keeping(lambda y: [y.sum()])):
        for _ in range(2):
            with pytest.raises(Unsupported, match="forward changes place"):
                program_of(module, torch.randn(2, 4))
            module(torch.randn(2, 4))


@torch.no_grad()
def test_a_module_that_fills_a_table_is_no_such_thing():
    """Z-Image's rotary frequencies: what is made without the inputs, every call would make again."""
    program_of(Keeping(lambda y: torch.arange(4).float().cos()), torch.randn(2, 4))
    program_of(Keeping(lambda y: [torch.arange(4), torch.ones(2)]), torch.randn(2, 4))


@torch.no_grad()
@pytest.mark.parametrize("keep", [lambda y: 1, lambda y: [], lambda y: [torch.arange(4), 1], lambda y: Keeping.Place()])
def test_a_module_that_keeps_something_else_is_refused(keep):
    with pytest.raises(Unsupported, match="forward changes place"):
        program_of(Keeping(keep), torch.randn(2, 4))


@torch.no_grad()
def test_a_tensor_that_is_changed_where_it_stands_is_a_state():
    class Adding(Keeping):
        def forward(self, x):
            return self.place.value.add_(x)

    module = Adding(None)
    module.place.value = torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match="is mutated in the forward method"):
        program_of(module, torch.randn(2, 4))


@torch.no_grad()
def test_a_tensor_that_is_made_of_the_one_before_is_a_state():
    class Counting(Keeping):
        def forward(self, x):
            self.place.value = self.place.value + 1
            return x * 2

    module = Counting(None)
    module.place.value = torch.zeros(2)
    with pytest.raises(Unsupported, match="forward changes place"):
        program_of(module, torch.randn(2, 4))


@torch.no_grad()
def test_hidden_states_are_captured_once():
    """Also after a first call in torch, in which transformers puts its hooks into the inner one of two models."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    for calls in range(2):
        model = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=9, projection_dim=8, **sizes)).eval()
        for _ in range(calls):
            model(torch.ones(1, 4, dtype=torch.long), output_hidden_states=True)
        assert len(program_of(model, torch.ones(1, 4, dtype=torch.long), output_hidden_states=True).outputs) == 5


@torch.no_grad()
def test_a_weight_that_a_hook_computes_is_no_state():
    conv = torch.nn.utils.weight_norm(torch.nn.Conv1d(3, 4, 3))
    net = torch.nn.Sequential(conv).eval()
    x = torch.randn(1, 3, 8)
    expected = net(x) - conv.bias[:, None]
    diffusers_oneflow.compile(net, diffusers_oneflow.OneFlowConfig(fallback="error"))
    torch.testing.assert_close(net(x) - conv.bias[:, None], expected)
    conv.weight_g.data *= 2
    torch.testing.assert_close(net(x) - conv.bias[:, None], 2 * expected)
    # By itself: the trace would not see its own hook.
    diffusers_oneflow.compile(conv, diffusers_oneflow.OneFlowConfig(fallback="error"))
    with pytest.raises(Unsupported, match="hooks"):
        conv(x)


def test_what_this_package_keeps_on_a_module_is_no_state_of_it(block):
    """It holds all of the module again, for every graph."""
    plain = _held(block)
    diffusers_oneflow.compile(block, diffusers_oneflow.OneFlowConfig(progress=False))
    with torch.no_grad():
        block(torch.randn(1, 3, 8, 8))
    assert _held(block).keys() == plain.keys()
