"""What a call of an attached module gives, and when graphs are built."""

import copy
import dataclasses
import gc
import pickle
import threading
import warnings
import weakref
from typing import NamedTuple

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

import diffusers_oneflow
from diffusers_oneflow import FallbackWarning, OneFlowConfig, Unsupported
from diffusers_oneflow.backend import dispatcher_of

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def attached(module, **options):
    return diffusers_oneflow.compile(module.eval(), OneFlowConfig(**options))


def reference(module, *args, **kwargs):
    """What torch gives for an attached module."""
    with torch.no_grad():
        return module._call_impl(*args, **kwargs)


def built(module) -> int:
    return dispatcher_of(module).record.built


def fallbacks(module) -> dict:
    return dispatcher_of(module).record.fallbacks


pytestmark = pytest.mark.usefixtures("no_grad")


def test_result_equals_torch_and_second_call_builds_nothing(block):
    attached(block, fallback="error")
    for _ in range(3):
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(block(x), reference(block, x), **CLOSE)
    assert built(block) == 1


def test_each_shape_and_dtype_has_its_graph(block):
    attached(block, fallback="error")
    for shape in ((1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 6, 10), (1, 3, 8, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(block(x), reference(block, x), **CLOSE)
    assert built(block) == 3
    block.double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(block, x))


@pytest.mark.parametrize(
    "strided",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2, 1:],
        lambda x: x[:1].expand(2, 3, 8, 8),
        lambda x: torch.cat([x, x], 1)[:, 1:4],
    ],
)
def test_strided_inputs_are_read_right_and_left_alone(block, strided):
    attached(block, fallback="error")
    x = strided(torch.randn(2, 3, 8, 8))
    before, stride = x.clone(), x.stride()
    result = block(x)
    torch.testing.assert_close(result, reference(block, x), **CLOSE)
    assert torch.equal(x, before) and x.stride() == stride


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x, scale=1.0, shift=0, *, double=False):
        y = self.linear(x) * scale + shift
        return y * 2 if double else y


class Two(torch.nn.Module):
    def forward(self, x, y):
        return 2 * x - y, x


def test_one_tensor_in_two_places_is_another_call_than_two_tensors():
    module = attached(Two(), fallback="error")
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    for a, b in ((x, x), (x, y), (y, y)):
        made, expected = module(a, b), reference(module, a, b)
        torch.testing.assert_close(made[0], expected[0], **CLOSE)
        torch.testing.assert_close(made[1], expected[1], **CLOSE)
    assert built(module) == 2


class AsksForTheLayout(torch.nn.Module):
    def forward(self, x):
        return x * (2 if x.is_contiguous() else 3) + x.stride(0)


def test_code_that_asks_for_the_layout_is_never_stale():
    module = attached(AsksForTheLayout(), fallback="error")
    x = torch.randn(4, 6)
    for given in (x, x.T, torch.randn(4, 12)[:, ::2], torch.randn(4, 9)[:, :6], x + 1):
        torch.testing.assert_close(module(given), reference(module, given), **CLOSE)


def test_what_is_learned_of_calls_goes_with_their_graphs():
    class Scaled(torch.nn.Module):
        def forward(self, x, scale):
            return x * scale

    module = attached(Scaled(), max_graphs=2)
    for size in range(1, 9):
        module(torch.randn(size), 1.5)
    dispatcher = dispatcher_of(module)
    assert len(dispatcher.entries) == 2 == len(dispatcher._graphs)
    assert all(len(known) <= 2 for known in (dispatcher._graphs._seen_numbers, dispatcher._graphs._most_open, dispatcher._groups))


def test_ten_float_values_build_one_graph():
    module = attached(Scaled(), fallback="error")
    x = torch.randn(3, 4)
    for i in range(10):
        torch.testing.assert_close(module(x, 0.1 * i), reference(module, x, 0.1 * i), **CLOSE)
    assert built(module) == 1


def test_an_integer_that_varies_becomes_an_input():
    module = attached(Scaled(), fallback="error")
    x = torch.randn(3, 4)
    for i in range(10):
        torch.testing.assert_close(module(x, shift=i), reference(module, x, shift=i), **CLOSE)
    assert built(module) == 2


def test_a_bool_argument_keys_the_graph():
    module = attached(Scaled(), fallback="error")
    x = torch.randn(3, 4)
    for double in (False, True, False):
        torch.testing.assert_close(module(x, double=double), reference(module, x, double=double), **CLOSE)
    assert built(module) == 2


class Branching(torch.nn.Module):
    def forward(self, x, scale):
        return x * scale if scale > 1 else x - scale


def test_a_float_that_the_code_branches_on_is_never_stale():
    module = attached(Branching(), fallback="error")
    x = torch.randn(3)
    for scale in (0.5, 2.0, 0.25, 2.0):
        torch.testing.assert_close(module(x, scale), reference(module, x, scale), **CLOSE)
    assert built(module) == 3


@dataclasses.dataclass
class Pair:
    first: torch.Tensor
    second: dict


class Named(NamedTuple):
    a: torch.Tensor
    b: int


class Nested(torch.nn.Module):
    def forward(self, pair, options=None, items=()):
        total = pair.first + pair.second["x"][0]
        if options is not None:
            total = total * options["scale"]
        for item in items:
            total = total + item
        return {
            "pair": Pair(total, {"n": 3, "same": total}), "list": [total.sum(), None, "text"], "named": Named(total.relu(), 7),
            "output": UNet2DConditionOutput(sample=total), "flag": total > 0, "zero": total.mean(),
        }  # fmt: skip


def test_nested_arguments_and_outputs_come_back_as_themselves():
    module = attached(Nested(), fallback="error")
    for options, items in ((None, ()), ({"scale": 2.0}, [torch.randn(3), torch.tensor(2)])):
        pair = Pair(torch.randn(3), {"x": (torch.randn(3),)})
        result, expected = module(pair, options, items=items), reference(module, pair, options, items=items)
        torch.testing.assert_close(result["pair"].first, expected["pair"].first, **CLOSE)
        assert result["pair"].second["n"] == 3 and result["pair"].second["same"] is result["pair"].first
        assert type(result["output"]) is UNet2DConditionOutput and type(result["named"]) is Named
        torch.testing.assert_close(result["output"].sample, expected["output"].sample, **CLOSE)
        torch.testing.assert_close(result["output"][0], expected["output"][0], **CLOSE)
        assert result["list"][1:] == [None, "text"] and result["named"].b == 7
        torch.testing.assert_close(result["list"][0], expected["list"][0], **CLOSE)
        assert result["flag"].dtype == torch.bool and torch.equal(result["flag"], expected["flag"])
        assert result["zero"].shape == ()
    assert not fallbacks(module)


class Handing(torch.nn.Module):
    def forward(self, x, mask):
        return x, torch.where(mask, x * 2, 0.0), x + 1


def test_inputs_handed_back_are_the_inputs_and_bool_tensors_work():
    module = attached(Handing(), fallback="error")
    x, mask = torch.randn(4, 4), torch.rand(4, 4) > 0.5
    same, masked, _ = module(x, mask)
    assert same is x
    torch.testing.assert_close(masked, reference(module, x, mask)[1])


def test_results_do_not_share_memory_between_calls(block):
    attached(block, fallback="error")
    x = torch.randn(1, 3, 8, 8)
    first = block(x)
    kept = first.clone()
    block(torch.randn(1, 3, 8, 8))
    assert torch.equal(first, kept)


def test_an_empty_tensor_runs_in_torch(block):
    attached(block)
    with pytest.warns(FallbackWarning, match="empty tensor"):
        assert block(torch.randn(0, 3, 8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "bad",
    [lambda: (torch.randn(1, 5, 8, 8),), lambda: ("text",), lambda: (torch.ones(1, 3, 8, 8).int(),), lambda: (), lambda: (None,)],
)
def test_bad_input_raises_what_torch_raises(block, bad):
    args = bad()
    with pytest.raises(Exception) as expected:
        block(*args)
    attached(block, fallback="error")
    with pytest.raises(type(expected.value)) as raised:
        block(*args)
    assert str(raised.value) == str(expected.value)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(block(x), reference(block, x), **CLOSE)


def test_nan_weights_give_nan(block):
    attached(block, fallback="error")
    block[0].weight[0, 0, 0, 0] = float("nan")
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(block(x).isnan(), reference(block, x).isnan())


def test_bfloat16_runs_on_the_kernel_pack(block):
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    exact = block.double()(x.double())
    attached(block.to(torch.bfloat16))
    mine, torchs = (block(x) - exact).abs().max(), (reference(block, x) - exact).abs().max()
    assert built(block) == 1 and not fallbacks(block) and mine <= 1.2 * torchs


@torch.no_grad()
def test_half_on_oneflows_own_kernels_runs_in_torch_and_is_right(block):
    attached(block.to(torch.bfloat16), kernels="oneflow")
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    with pytest.warns(FallbackWarning):
        assert torch.equal(block(x), reference(block, x))


class Sorting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(4, 4), Sorted())

    def forward(self, x):
        return self.inner(x)


class Sorted(torch.nn.Module):
    def forward(self, x):
        return torch.sort(x, dim=-1).values


def test_an_op_without_lowering_falls_back_once_with_op_path_and_line():
    module = attached(Sorting())
    x = torch.randn(2, 4)
    with pytest.warns(FallbackWarning, match=r"aten\.sort.*inner\.1.*test_dispatch\.py:\d+"):
        result = module(x)
    assert torch.equal(result, reference(module, x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x)
    assert list(fallbacks(module).values()) == [2]


def test_fallback_error_raises():
    module = attached(Sorting(), fallback="error")
    with pytest.raises(Unsupported, match=r"aten\.sort"):
        module(torch.randn(2, 4))


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Accumulating(Counting):
    def forward(self, x):
        self.total += x
        return self.total * 2


@pytest.mark.parametrize("kind", [Counting, Accumulating])
def test_a_stateful_module_runs_in_torch_and_is_right(kind):
    module, twin = attached(kind()), kind()
    with pytest.warns(FallbackWarning, match="stateful"):
        for _ in range(3):
            assert torch.equal(module(torch.ones(3)), twin(torch.ones(3)))


def test_gradients_run_in_torch(block):
    attached(block)
    with torch.enable_grad(), pytest.warns(FallbackWarning, match="no_grad"):
        block(torch.randn(1, 3, 8, 8)).sum().backward()
    assert block[0].weight.grad is not None


def test_autocast_with_oneflows_own_kernels_runs_in_torch(block):
    attached(block, kernels="oneflow")
    x = torch.randn(1, 3, 8, 8)
    said = "autocast is on, and oneflow kernels do not cast .* of float32 to bfloat16 here"
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(FallbackWarning, match=said):
        assert block(x).dtype == torch.bfloat16
    assert dispatcher_of(block).record.built == 0


def test_graphs_are_dropped_by_least_recent_use(block):
    attached(block, fallback="error", max_graphs=2)
    sizes = (4, 6, 8)
    for size in sizes:
        block(torch.randn(1, 3, size, size))
    assert [e.shapes for e in dispatcher_of(block).entries] == [[f"(1, 3, {s}, {s}) float32"] for s in (6, 8)]
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(block(x), reference(block, x), **CLOSE)
    assert built(block) == 4


def test_a_deepcopy_stays_attached_with_weights_of_its_own(block):
    attached(block, fallback="error")
    x = torch.randn(1, 3, 8, 8)
    block(x)
    other = copy.deepcopy(block)
    other[0].weight.mul_(2)
    torch.testing.assert_close(other(x), reference(other, x), **CLOSE)
    torch.testing.assert_close(block(x), reference(block, x), **CLOSE)
    assert dispatcher_of(other) is not dispatcher_of(block) and built(other) == 1
    assert not torch.allclose(other(x), block(x))


def test_a_pickled_module_comes_back_detached(block):
    attached(block)
    loaded = pickle.loads(pickle.dumps(block))
    assert dispatcher_of(loaded) is None and "_compiled_call_impl" not in loaded.__dict__
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded(x), reference(block, x))


def test_threads_give_right_results(block):
    attached(block, fallback="error")
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for i in range(20):
                x = torch.randn(1, 3, 4 + 2 * (i % 3), 8, generator=generator)
                if not torch.allclose(block(x), reference(block, x), **CLOSE):
                    wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and built(block) == 3


def test_an_export_in_another_thread_sends_no_call_to_torch(block):
    """torch.export sets its sign for the whole process."""
    module = attached(block, fallback="error")
    inside, done = threading.Event(), threading.Event()

    class Slow(torch.nn.Module):
        def forward(self, x):
            inside.set()
            assert done.wait(60)
            return x + 1

    thread = threading.Thread(target=lambda: torch.export.export(Slow(), (torch.zeros(2),), strict=False))
    module(torch.randn(1, 3, 8, 8))
    thread.start()
    try:
        assert inside.wait(60) and torch.compiler.is_compiling()
        calls = dispatcher_of(module).entries[0].calls
        module(torch.randn(1, 3, 8, 8))
        assert dispatcher_of(module).entries[0].calls == calls + 1
    finally:
        done.set()
        thread.join()


def test_an_exported_module_shows_its_ops_though_attached(block):
    module = attached(block)
    with torch.no_grad():
        exported = torch.export.export(module, (torch.randn(1, 3, 8, 8),), strict=False)
    assert "aten.conv2d.default" in {str(n.target) for n in exported.graph.nodes}


def test_a_module_is_freed_with_its_last_reference(block):
    attached(block)
    block(torch.randn(1, 3, 8, 8))
    inner = weakref.ref(block[0].weight)
    module = torch.nn.Sequential(*block)
    attached(module)
    module(torch.randn(1, 3, 8, 8))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None and inner() is not None


@torch.no_grad()
def test_an_index_out_of_range_raises_torchs_error_and_the_graph_goes_on():
    module = attached(torch.nn.Embedding(10, 4))
    ids = torch.tensor([1, 2, 3])
    assert torch.equal(module(ids), reference(module, ids))
    with pytest.raises(IndexError):
        module(torch.tensor([1, 99, 3]))
    with pytest.raises(IndexError):
        module(torch.tensor([-11, 2, 3]))
    assert torch.equal(module(ids), reference(module, ids))
