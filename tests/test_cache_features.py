"""What is kept on disk of features that go beyond a plain module: it comes back and is right, or it is not kept."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

import diffusers_oneflow
from conformance import flux
from diffusers_oneflow import OneFlowConfig
from diffusers_oneflow.backend import dispatcher_of

from .test_cache import CLOSE, check, run

KEPT = "captured", "disk cache"


pytestmark = pytest.mark.usefixtures("no_grad", "settled")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def unet_args():
    return torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 5, 16)


def again(module, folder, *args, origin, **kwargs):
    """As `check`, of a call with keywords and a ModelOutput."""
    diffusers_oneflow.compile(module, OneFlowConfig(fallback="error", cache=folder, progress=False))
    made, expected = module(*args, **kwargs)[0], module._call_impl(*args, **kwargs)[0]
    torch.testing.assert_close(made, expected, **CLOSE)
    assert dispatcher_of(module).entries[-1].origin == origin


class Rotating(torch.nn.Module):
    """By complex numbers that stand in an attribute, and a table of real ones that does not."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.turns = torch.polar(torch.ones(4), torch.arange(4.0))

    def forward(self, x):
        pairs = torch.view_as_complex(self.linear(x).reshape(-1, 4, 2)) * self.turns
        return torch.view_as_real(pairs).flatten(1) * torch.tensor([1.0, 2.0] * 4)


class TakingComplex(torch.nn.Module):
    def forward(self, x, turns):
        return torch.view_as_real(torch.view_as_complex(x.reshape(-1, 4, 2)) * turns).flatten(1)


@pytest.mark.parametrize(
    ("make", "args"),
    [(Rotating, (torch.randn(3, 8),)), (TakingComplex, (torch.randn(3, 8), torch.polar(torch.ones(4), torch.arange(4.0))))],
)
def test_complex_numbers(folder, make, args):
    module = make()
    for origin in KEPT:
        check(module, folder, origin, *args)


def test_what_is_written_to_a_tensor_of_the_module_later_is_seen(folder):
    for make, name in ((Rotating, "turns"), (Tabled, "table")):
        module, x = make(), torch.randn(3, 8)
        for origin in KEPT:
            before, found = run(module, folder, x)
            getattr(module, name).mul_(2)
            torch.testing.assert_close(module(x), module._call_impl(x), **CLOSE)
            assert found == origin and not torch.allclose(before, module(x))
            # The content is part of the key.
            getattr(module, name).div_(2)


class Tabled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.table = torch.nn.Linear(8, 8), torch.arange(8.0)

    def forward(self, x):
        return self.linear(x) + self.table + WORDS["shift"]


WORDS = {"shift": torch.ones(8)}


def test_what_is_written_to_a_global_tensor_later_is_seen(folder):
    module, x = Tabled(), torch.randn(3, 8)
    for origin in KEPT:
        check(module, folder, origin, x)
        WORDS["shift"].mul_(3)
        torch.testing.assert_close(module(x), module._call_impl(x), **CLOSE)
        WORDS["shift"].div_(3)


def test_other_sizes_see_it_too(folder):
    module = Tabled()
    diffusers_oneflow.compile(module, OneFlowConfig(fallback="error", cache=None))
    for rows in (2, 3):
        module(torch.randn(rows, 8))
    assert dispatcher_of(module).entries[-1].origin == "captured anew for these sizes"
    module.table.mul_(2)
    x = torch.randn(3, 8)
    torch.testing.assert_close(module(x), module._call_impl(x), **CLOSE)


def adapter(rank=2):
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_v"], init_lora_weights=False)


def test_strengths_of_adapters_are_inputs_of_stored_programs(unet, folder):
    args = unet_args()
    unet.add_adapter(adapter(), "one")
    unet.add_adapter(adapter(3), "two")
    unet.set_adapters(["one", "two"], [1.0, 1.0])
    again(unet, folder, *args, origin="captured")
    for strengths in ([0.5, 0.5], [-1.0, 0.25], [0.0, 2.0]):
        unet.set_adapters(["one", "two"], strengths)
        again(unet, folder, *args, origin="disk cache")
    again(unet, folder, *args, cross_attention_kwargs={"scale": 0.5}, origin="captured")
    again(unet, folder, *args, cross_attention_kwargs={"scale": 0.25}, origin="disk cache")
    unet.disable_adapters()
    again(unet, folder, *args, origin="captured")


_LOADS = """
import sys, torch, diffusers_oneflow
import diffusers_oneflow.libraries
from diffusers_oneflow import OneFlowConfig
from diffusers_oneflow.backend import dispatcher_of
from tests.conftest import tiny_unet
from tests.test_cache_features import unet_args
diffusers_oneflow.libraries.STARTED = 1e18
torch.manual_seed(0)
unet = tiny_unet()
unet.load_lora_adapter(torch.load(sys.argv[1]), prefix=None, adapter_name="one")
diffusers_oneflow.compile(unet, OneFlowConfig(fallback="error", cache=sys.argv[2]))
with torch.no_grad():
    unet(*unet_args())
print(dispatcher_of(unet).entries[0].origin)
"""


def test_a_process_that_loads_the_same_adapter_finds_its_program(unet, folder, tmp_path):
    """diffusers makes a list of a set of names, in an order that is another in every process."""
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False), "one")
    torch.save(get_peft_model_state_dict(unet, adapter_name="one"), tmp_path / "lora.pt")
    said = []
    for seed in "123":
        command = [sys.executable, "-c", _LOADS, str(tmp_path / "lora.pt"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout.strip())
    assert said == ["captured", "disk cache", "disk cache"]


class Weighs(torch.nn.Module):
    """Asks how strong its adapter is: the strength cannot be an input."""

    def __init__(self):
        super().__init__()
        self.to_q = torch.nn.Linear(8, 8)

    def forward(self, x):
        scaling = getattr(self.to_q, "scaling", {"a": 1.0})["a"]
        return self.to_q(x) if scaling > 0.5 else x + scaling


def test_strengths_that_a_program_holds_are_part_of_its_key(folder):
    from peft import inject_adapter_in_model

    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False)
    module, x = inject_adapter_in_model(config, Weighs(), "a").eval(), torch.randn(2, 8)
    for strength in (1.0, 0.25, 0.75, 0.125):
        module.to_q.scaling["a"] = strength
        for origin in KEPT:
            check(module, folder, origin, x)


def test_tensors_as_strengths_are_read_where_they_are(unet, folder):
    """What enable_lora_hotswap leaves."""
    unet.add_adapter(adapter(), "one")
    for module in unet.modules():
        if "one" in getattr(module, "scaling", {}):
            module.scaling["one"] = torch.tensor(1.0)
    args = unet_args()
    for origin in KEPT:
        again(unet, folder, *args, origin=origin)
        before = unet(*args)[0]
        for change in (3.0, 1 / 3.0):
            for module in unet.modules():
                if "one" in getattr(module, "scaling", {}):
                    module.scaling["one"].mul_(change)
            torch.testing.assert_close(unet(*args)[0], unet._call_impl(*args)[0], **CLOSE)
            assert (change < 1) == torch.allclose(unet(*args)[0], before, atol=1e-5)


def test_attention_backends_have_programs_of_their_own(folder):
    model = flux.parts()["transformer"].eval()
    args = {
        "hidden_states": torch.randn(1, 4, model.config.in_channels),
        "encoder_hidden_states": torch.randn(1, 3, model.config.joint_attention_dim),
        "pooled_projections": torch.randn(1, model.config.pooled_projection_dim),
        "timestep": torch.tensor([0.5]), "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3),
    }  # fmt: skip
    if model.config.guidance_embeds:
        args["guidance"] = torch.tensor([3.0])
    for origin in KEPT:
        again(model, folder, origin=origin, **args)
    with attention_backend("_native_math"):
        for origin in KEPT:
            again(model, folder, origin=origin, **args)
    model.set_attention_backend("_native_math")
    again(model, folder, origin="captured", **args)
    model.reset_attention_backend()


def test_hidden_states_that_hooks_collect(folder):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model, words = CLIPTextModel(CLIPTextConfig(**sizes)).eval(), torch.tensor([[1, 2, 3]])
    for options in ({"output_hidden_states": True}, {}):
        for origin in KEPT:
            diffusers_oneflow.compile(model, OneFlowConfig(fallback="error", cache=folder))
            made, expected = model(words, **options), model._call_impl(words, **options)
            assert list(made) == list(expected)
            for ours, theirs in zip(made.hidden_states or (), expected.hidden_states or ()):
                torch.testing.assert_close(ours, theirs, **CLOSE)
            assert dispatcher_of(model).entries[-1].origin == origin or options


def test_free_u(unet, folder):
    """It cannot run as a whole; its parts come back, and not with other strengths."""
    args = unet_args()

    def drawn():
        diffusers_oneflow.compile(unet, OneFlowConfig(cache=folder, progress=False))
        with pytest.warns(diffusers_oneflow.FallbackWarning):
            unet(*args)
        made = unet(*args)[0]
        origins = [e.origin for d in dispatcher_of(unet).parts.all() for e in d.entries]
        diffusers_oneflow.detach(unet)
        torch.testing.assert_close(made, unet(*args)[0], **CLOSE)
        return set(origins)

    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert "captured" in drawn()
    assert drawn() == {"disk cache"}
    unet.enable_freeu(s1=0.1, s2=0.9, b1=0.5, b2=2.0)
    drawn()


def test_strides_of_inputs_and_modes_have_programs_of_their_own(block, folder):
    x = torch.randn(1, 3, 8, 8)
    check(block, folder, "captured", x)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3), x.expand(2, 3, 8, 8)):
        made, origin = run(block, folder, other)
        torch.testing.assert_close(made, block._call_impl(other), **CLOSE)
        assert origin != "disk cache"
    check(block, folder, "disk cache", x)
    with torch.inference_mode():
        check(block, folder, "captured", x)


@pytest.mark.parametrize("weights", ["packed", "shared"])
def test_ways_to_keep_weights_share_programs(unet, folder, weights):
    args = unet_args()
    again(unet, folder, *args, origin="captured")
    diffusers_oneflow.compile(unet, OneFlowConfig(fallback="error", cache=folder, weights=weights, hoist=True))
    torch.testing.assert_close(unet(*args)[0], unet._call_impl(*args)[0], **CLOSE)
    assert dispatcher_of(unet).entries[-1].origin == "disk cache"
    assert dispatcher_of(unet).entries[-1].hoisted
