"""Values between a script that speaks OneFlow and libraries that speak torch."""

import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import BaseOutput
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

from diffusers_oneflow import border, border_setup, engine

NAMES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool")
flow = engine.load()
border_setup.install()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@given(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(NAMES), st.booleans(), st.integers(0, 99))
def test_tensors_go_out_and_come_back_to_the_bit(shape, name, transposed, seed):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(50).to(getattr(torch, name))
    tensor = made.mT if transposed and len(shape) > 1 else made
    there = border.outward(tensor)
    assert isinstance(there, flow.Tensor) and tuple(there.shape) == tuple(tensor.shape) and str(there.dtype) == f"oneflow.{name}"
    back = border.inward(there)
    assert back.dtype == tensor.dtype and back.shape == tensor.shape and bits(back) == bits(tensor)


def test_memory_is_shared():
    tensor = torch.zeros(2, 3)
    there = border.outward(tensor)
    tensor[0, 1] = 5
    assert there.numpy()[0, 1] == 5
    border.inward(there)[1, 2] = 7
    assert tensor[1, 2] == 7


def test_an_expanded_tensor_arrives_whole():
    tensor = torch.arange(3.0).expand(4, 3)
    assert np.array_equal(border.outward(tensor).numpy(), tensor.numpy())
    there = flow.arange(3).expand(4, 3)
    assert np.array_equal(border.inward(there).numpy(), there.numpy())


def test_gradients_stay_where_they_are():
    weight = torch.ones(3, requires_grad=True)
    assert not border.outward(weight * 2).requires_grad
    assert not border.inward(flow.ones(3, requires_grad=True) * 2).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name):
    assert border.inward(getattr(flow, name)) is getattr(torch, name)
    assert border.outward(getattr(torch, name)) == getattr(flow, name)


def test_devices_and_sizes():
    assert border.inward(flow.device("cpu")) == torch.device("cpu")
    assert border.inward(flow.device("cuda:1")) == torch.device("cuda:1")
    assert border.outward(torch.device("cuda:1")) == flow.device("cuda:1")
    assert border.outward(torch.device("meta")) == torch.device("meta")
    assert border.inward(flow.Size([2, 3])) == torch.Size([2, 3]) and isinstance(border.inward(flow.Size([2, 3])), torch.Size)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.int16), torch.eye(2).to_sparse()]
)
def test_what_oneflow_has_no_tensors_for_is_said(tensor):
    with pytest.raises(TypeError, match="OneFlow has no tensors of"):
        border.outward(tensor)


def test_containers_change_only_where_they_have_to():
    plain = [1, {"a": (None, "b")}, [torch.zeros(1)]]
    assert border.inward(plain) is plain
    mixed = {"list": [flow.ones(2), 3], "dtype": (flow.float16,), "plain": plain}
    there = border.inward(mixed)
    assert isinstance(there["list"][0], torch.Tensor) and there["dtype"] == (torch.float16,) and there["plain"] is plain
    assert isinstance(mixed["list"][0], flow.Tensor)


def test_outputs_of_models_pipelines_and_tokenizers():
    given = StableDiffusionPipelineOutput(images=torch.ones(2), nsfw_content_detected=None)
    there = border.outward(given)
    assert type(there) is StableDiffusionPipelineOutput and there.nsfw_content_detected is None
    assert isinstance(there.images, flow.Tensor) and there[0] is there.images and isinstance(given.images, torch.Tensor)
    state = border.outward(BaseModelOutput(last_hidden_state=torch.ones(2), hidden_states=(torch.ones(1), torch.ones(1))))
    assert isinstance(state.last_hidden_state, flow.Tensor) and all(isinstance(h, flow.Tensor) for h in state["hidden_states"])
    words = BatchEncoding({"input_ids": torch.ones(2, dtype=torch.int64)})
    assert isinstance(border.outward(words).input_ids, flow.Tensor) and isinstance(words.input_ids, torch.Tensor)
    assert isinstance(given, BaseOutput)


def noise(generator) -> torch.Tensor:
    return torch.randn(4, generator=border.inward(generator))


@pytest.mark.parametrize("device", ["auto", "cpu", flow.device("cpu"), None])
def test_a_fresh_generator_draws_what_torch_draws_from_its_seed(device):
    assert torch.equal(noise(flow.Generator(device).manual_seed(3)), torch.randn(4, generator=torch.Generator().manual_seed(3)))


def test_a_generator_goes_on_and_starts_anew_when_seeded():
    generator = flow.Generator().manual_seed(3)
    theirs = torch.Generator().manual_seed(3)
    first, second = noise(generator), noise(generator)
    assert torch.equal(first, torch.randn(4, generator=theirs)) and torch.equal(second, torch.randn(4, generator=theirs))
    generator.manual_seed(3)
    assert torch.equal(noise(generator), first)
    generator.manual_seed(4)
    assert not torch.equal(noise(generator), first)
    generator.manual_seed(3)
    assert torch.equal(noise(generator), first)


def test_what_oneflow_drew_is_not_drawn_again():
    generator = flow.Generator().manual_seed(3)
    flow.randn(4, generator=generator)
    used = noise(generator)
    assert not torch.equal(used, torch.randn(4, generator=torch.Generator().manual_seed(3)))
    generator.manual_seed(3)
    flow.randn(4, generator=generator)
    assert torch.equal(noise(generator), used)
    flow.randn(4, generator=generator)
    assert not torch.equal(noise(generator), used)


def test_seeding_oneflow_seeds_torch():
    generator = flow.manual_seed(11)
    drawn = torch.randn(3)
    assert torch.equal(drawn, torch.randn(3, generator=torch.Generator().manual_seed(11)))
    assert torch.equal(noise(generator)[:3], noise(flow.manual_seed(11))[:3])


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("cpu",), {}), (("cpu", "bfloat16"), {}), (("cpu",), {"dtype": "float16"}), (("cpu",), {"enabled": False}),
        (("cpu", None, True, False), {}), (("cpu",), {"cache_enabled": False}),
    ],
)  # fmt: skip
def test_autocast_has_the_effect_of_torchs(args, kwargs):
    def of(library):
        def named(value):
            return getattr(library, value) if value in NAMES else value

        return library.autocast(args[0], *map(named, args[1:]), **{k: named(v) for k, v in kwargs.items()})

    def state():
        return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

    layer = torch.nn.Linear(4, 4)
    outside = state()
    with of(torch):
        expected, dtype = state(), layer(torch.ones(1, 4)).dtype
    with of(flow):
        assert state() == expected and layer(torch.ones(1, 4)).dtype == dtype
    assert state() == outside

    @of(flow)
    def decorated():
        return state()

    assert decorated() == expected and state() == outside


def test_autocast_of_other_devices():
    with flow.autocast("cuda", enabled=False), flow.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
    with pytest.raises(RuntimeError, match="nonsense"):
        flow.autocast("nonsense")


def stock(tensor, dtype=None, callback_on_step_end=None):
    """A function of a library: torch in, torch out."""
    assert isinstance(tensor, torch.Tensor) and (dtype is None or isinstance(dtype, torch.dtype))
    if callback_on_step_end is not None:
        tensor = callback_on_step_end(tensor)
        assert isinstance(tensor, torch.Tensor)
    return {"tensor": tensor * 2, "grad": torch.is_grad_enabled()}


def test_a_crossing_answers_in_the_language_of_its_arguments():
    crossed = border.crossing(stock)
    assert isinstance(crossed(flow.ones(2))["tensor"], flow.Tensor)
    assert isinstance(crossed(torch.ones(2))["tensor"], torch.Tensor)
    assert isinstance(crossed(torch.ones(2), dtype=flow.float16)["tensor"], torch.Tensor)
    seen = []

    def callback(tensor):
        seen.append(type(tensor))
        return tensor + 1

    assert crossed(flow.ones(2), callback_on_step_end=callback)["tensor"].numpy().tolist() == [4.0, 4.0]
    assert crossed(torch.ones(2), callback_on_step_end=callback)["tensor"].tolist() == [4.0, 4.0]
    assert seen == [flow.Tensor, torch.Tensor]


def test_a_crossing_knows_who_calls():
    caller = types.ModuleType("caller")
    caller.__dict__.update(torch=flow, crossed=border.crossing(stock))
    exec("def call(value): return crossed(value)", caller.__dict__)
    assert isinstance(caller.call(torch.ones(2))["tensor"], flow.Tensor)
    caller.torch = torch
    assert isinstance(caller.call(torch.ones(2))["tensor"], torch.Tensor)


def test_no_grad_of_oneflow_holds_in_torch():
    crossed = border.crossing(stock)
    with flow.no_grad():
        assert crossed(flow.ones(2))["grad"] is False
    assert crossed(flow.ones(2))["grad"] is True


def test_oneflow_may_have_been_used_before():
    """Its first ops and its seed come before this package is imported."""
    code = """
import oneflow as torch
torch.manual_seed(5)
made = (torch.randn(4, 4) @ torch.ones(4, 4)).sum()
import diffusers_oneflow
from diffusers_oneflow import OneFlowStableDiffusionPipeline
import torch as real
assert real.initial_seed() == 5
module = real.nn.Sequential(real.nn.Conv2d(3, 8, 3), real.nn.SiLU()).eval()
image = real.ones(1, 3, 8, 8)
with real.no_grad():
    expected = module(image)
    diffusers_oneflow.compile(module, diffusers_oneflow.OneFlowConfig(fallback="error"))
    for _ in range(20):
        assert (module(image) - expected).abs().max() < 1e-5
        (torch.randn(4, 4) @ torch.ones(4, 4)).sum().numpy()
print("right")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_generators_can_still_be_pickled():
    generator = flow.Generator("cpu").manual_seed(3)
    assert pickle.loads(pickle.dumps(generator)).initial_seed() == 3


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, for want of one; what is moved is written down."""

    is_cuda = property(lambda self: True)
    device = property(lambda self: torch.device("cuda", 0))

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_what_a_script_returns_is_on_the_gpu_of_what_it_got(monkeypatch):
    moved = []
    monkeypatch.setattr(border.no_gpu, "refusal", lambda: "no kernels")
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **options: moved.append(where) or self)
    here = types.ModuleType("library")
    here.__dict__["call"] = None
    given = torch.ones(2).as_subclass(OnGpu)

    class Scheduler:
        def step(self, sample, **options):
            assert isinstance(sample, flow.Tensor) and sample.device.type == "cpu"
            return sample, {"kept": sample}, 3

    exec("def call(method, *args): return method(*args)", here.__dict__)
    sample, kept, number = here.call(border.called_back(Scheduler.step), Scheduler(), given)
    assert number == 3 and moved == [(torch.device("cuda", 0),)] * 2
    assert isinstance(sample, torch.Tensor) and isinstance(kept["kept"], torch.Tensor)
    moved.clear()
    assert isinstance(here.call(border.called_back(Scheduler.step), Scheduler(), torch.ones(2))[0], torch.Tensor) and not moved
