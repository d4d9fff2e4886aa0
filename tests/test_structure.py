"""No change of a module leaves a stale graph behind."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

import diffusers_oneflow
from diffusers_oneflow import FallbackWarning, OneFlowConfig
from diffusers_oneflow.backend import dispatcher_of
from diffusers_oneflow.structure import Structure


@pytest.fixture
def call(unet):
    """call() -> (OneFlow's result, torch's result) of the same inputs; the module is attached."""
    diffusers_oneflow.compile(unet, OneFlowConfig(fallback="error"))
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor(7), torch.randn(1, 5, 16))

    @torch.no_grad()
    def run():
        return unet(*inputs).sample, unet._call_impl(*inputs).sample

    before, expected = run()
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-5)

    def after(changed=True):
        result, expected = run()
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        if changed:
            assert not torch.allclose(result, before, rtol=1e-4, atol=1e-4), "the change has no effect: the test proves nothing"
        return result

    return after


def built(module):
    return dispatcher_of(module).record.built


def weight(unet):
    return unet.mid_block.resnets[0].conv1.weight


def in_place(unet):
    with torch.no_grad():
        weight(unet).mul_(3)


def through_data(unet):
    weight(unet).data += 1


def new_data(unet):
    weight(unet).data = weight(unet).data * 3


def new_parameter(unet):
    unet.mid_block.resnets[0].conv1.weight = torch.nn.Parameter(weight(unet).detach() * 3)


def load_state_dict(unet):
    unet.load_state_dict({k: v * 1.5 for k, v in unet.state_dict().items()})


@pytest.mark.parametrize("change", [in_place, through_data, load_state_dict])
def test_writes_into_the_weights_are_seen_without_a_new_graph(unet, call, change):
    change(unet)
    call()
    assert built(unet) == 1


@pytest.mark.parametrize("change", [new_data, new_parameter])
def test_new_weights_give_a_new_graph(unet, call, change):
    change(unet)
    call()
    assert built(unet) == 2


def scalar_attribute(unet):
    unet.mid_block.resnets[0].output_scale_factor = 5.0


def replaced_submodule(unet):
    unet.conv_act = torch.nn.ReLU()


def free_u(unet):
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def processor_attribute(unet):
    unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.scale = 3.0
    unet.set_attn_processor(AttnProcessor())


def class_of_a_submodule(unet):
    class Negated(torch.nn.Conv2d):
        def forward(self, x):
            return -super().forward(x)

    unet.conv_out.__class__ = Negated


@pytest.mark.parametrize("change", [scalar_attribute, replaced_submodule, processor_attribute, class_of_a_submodule])
def test_changes_of_structure_are_seen(unet, call, change):
    change(unet)
    call()
    assert built(unet) == 2


def test_going_back_to_a_structure_finds_its_graph(unet, call):
    resnet = unet.mid_block.resnets[0]
    for scale in (3.0, 2.0, 3.0, 2.0):
        resnet.output_scale_factor = scale
        call()
    assert built(unet) == 3


def test_another_attention_processor_is_seen(unet, call):
    unet.set_attn_processor(AttnProcessor())
    call(changed=False)
    assert built(unet) == 2


def test_hooks_run_in_every_call(unet, call):
    seen = []
    handle = unet.conv_out.register_forward_hook(lambda module, args, output: seen.append(1) or output * 2)
    diffusers_oneflow.compile(unet)
    with pytest.warns(FallbackWarning, match="conv_out.*forward hooks"):
        call()
    assert len(seen) == 2
    handle.remove()
    call(changed=False)
    assert built(unet) == 1


def test_a_patched_forward_runs_in_torch(unet, call):
    original = unet.conv_out.forward
    unet.conv_out.forward = lambda x: original(x) * 2
    diffusers_oneflow.compile(unet)
    with pytest.warns(FallbackWarning, match="forward of its own"):
        call()


def test_a_class_patch_is_seen(unet, call, monkeypatch):
    conv = type(unet.mid_block.resnets[0])
    original = conv.forward
    monkeypatch.setattr(conv, "forward", lambda self, x, *args, **kwargs: original(self, x, *args, **kwargs) * 2)
    call()


def test_lora_is_seen_at_every_step(unet, call):
    from peft import LoraConfig

    def randomised():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)

    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "one")
    randomised()
    with_lora = call()
    unet.set_adapters("one", weights=0.3)
    assert not torch.allclose(call(), with_lora, atol=1e-5)
    unet.fuse_lora()
    unet.unfuse_lora()
    unet.disable_adapters()
    call(changed=False)
    unet.enable_adapters()
    call()
    unet.delete_adapters("one")
    call(changed=False)


def test_an_unchanged_module_is_known_to_be_unchanged(unet):
    diffusers_oneflow.compile(unet)
    structure = Structure(unet)
    assert structure.unchanged() and Structure(unet).key == structure.key


def test_list_attributes_are_followed(block):
    block.scales = [1.0, 2.0]
    block.options = {"inner": {"depth": [1, 2]}}
    structure = Structure(block)
    block.scales[0] = 3.0
    assert not structure.unchanged() and Structure(block).key != structure.key
    structure = Structure(block)
    block.options["inner"]["depth"].append(3)
    assert not structure.unchanged()
