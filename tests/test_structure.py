"""No change of a module leaves a stale graph behind."""

import collections
import functools
import sys

import numpy as np
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


SCALE = 2.0
OPTIONS = {"scale": torch.tensor(2.0)}


def _scale_of(options):
    return options["scale"]


class Table:
    """A plain object with a slot."""

    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 2.0


class Processor:
    scale = 2.0

    def __call__(self, x):
        return x * self.scale


class Holding(torch.nn.Module):
    """Whose result depends on everything that it holds."""

    factor = 2.0
    kinds = {"factor": 2.0}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        self.names, self.order, self.slotted = {"a"}, collections.deque([2.0]), Table()
        self.array, self.bytes = np.array([2.0], dtype=np.float32), bytearray(b"2")
        self.processor, self.partial = Processor(), functools.partial(_scale_of, {"scale": 2.0})
        deep = [torch.tensor(2.0), 2.0]
        for _ in range(7):
            deep = {"deeper": [deep]}
        self.deep = deep

    def innermost(self):
        deep = self.deep
        while isinstance(deep, dict):
            deep = deep["deeper"][0]
        return deep

    def forward(self, x):
        x = self.processor(x @ self.table) * len(self.names) * self.order[0] * self.slotted.scale * self.factor
        x = x * torch.from_numpy(self.array) * len(self.bytes) * self.innermost()[0] * self.innermost()[1]
        return x * SCALE * _scale_of(OPTIONS) * self.kinds["factor"] * self.partial()


@pytest.fixture
def holding():
    """A module, and what to do after a change of it: the result must follow, and be found again in the next call."""
    module = Holding()
    diffusers_oneflow.compile(module, OneFlowConfig(fallback="error"))
    x = torch.tensor([[1.0, 2.0], [0.5, 3.0]])
    with torch.no_grad():
        before = module(x)
        torch.testing.assert_close(before, module._call_impl(x))

    @torch.no_grad()
    def check():
        for _ in range(2):
            result, expected = module(x), module._call_impl(x)
            assert not torch.allclose(expected, before), "the change has no effect: the test proves nothing"
            torch.testing.assert_close(result, expected)
        return built(module)

    return module, check


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.table.t_(),
        lambda m: setattr(m.table, "data", m.table * 3),
        lambda m: m.table.set_(m.table * 3),
        lambda m: m.names.add("b"),
        lambda m: m.order.__setitem__(0, 3.0),
        lambda m: m.order.appendleft(3.0),
        lambda m: setattr(m.slotted, "scale", 3.0),
        lambda m: m.array.__setitem__(0, 3.0),
        lambda m: m.bytes.append(1),
        lambda m: m.partial.args[0].update(scale=3.0),
        lambda m: m.innermost().__setitem__(1, 3.0),
        lambda m: setattr(m.innermost()[0], "data", torch.tensor(3.0)),
    ],
)  # fmt: skip
def test_whatever_a_module_holds_is_followed(holding, change):
    module, check = holding
    change(module)
    assert check() == 2


def test_a_tensor_that_is_held_deep_is_shared(holding):
    module, check = holding
    module.innermost()[0].mul_(3)
    assert check() == 1


@pytest.mark.parametrize("owner, name", [(Holding, "factor"), (Processor, "scale"), (sys.modules[__name__], "SCALE")])
def test_attributes_of_classes_and_globals_are_followed(holding, monkeypatch, owner, name):
    _, check = holding
    monkeypatch.setattr(owner, name, 3.0)
    assert check() == 2
    monkeypatch.undo()
    assert dispatcher_of(holding[0]).record.built == 2


def test_what_classes_and_globals_hold_is_followed(holding, monkeypatch):
    _, check = holding
    monkeypatch.setitem(OPTIONS, "scale", 3.0)
    assert check() == 2
    monkeypatch.setitem(Holding.kinds, "factor", 3.0)
    assert check() == 3


def test_functions_that_functions_name_are_followed(holding, monkeypatch):
    _, check = holding
    monkeypatch.setattr(sys.modules[__name__], "_scale_of", lambda options: 5 * options["scale"])
    assert check() == 2


def test_another_class_of_a_held_object_is_seen(holding):
    class Other(Processor):
        def __call__(self, x):
            return x - 1

    module, check = holding
    module.processor.__class__ = Other
    assert check() == 2


def _circle():
    circle = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    "held, reason",
    [
        (np.zeros(1 << 20), "large numpy array"),
        (np.array([{}], dtype=object), "numpy array of objects"),
        (bytearray(1 << 20), "large bytearray"),
        ([torch.nn.Linear(2, 2)], "Linear that is none of its submodules"),
        (functools.reduce(lambda inner, _: [inner], range(40), 1), "nested deeper"),
    ],
)
def test_what_cannot_be_followed_runs_in_torch(block, held, reason):
    block.held = held
    assert "the model (Sequential) holds" in Structure(block).refusal and reason in Structure(block).refusal


def test_a_circle_is_followed_once(block):
    block.held = _circle()
    structure = Structure(block)
    assert structure.refusal is None and Structure(block).key == structure.key
    block.held.append(1)
    assert not structure.unchanged()


def test_hooks_of_all_modules_run_in_every_call(block):
    diffusers_oneflow.compile(block)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        before = block(x)
        handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 2)
        try:
            with pytest.warns(FallbackWarning, match="hooks of all modules"):
                assert not torch.allclose(block(x), before)
        finally:
            handle.remove()
        torch.testing.assert_close(block(x), before)
