"""Strengths of adapters by groups, and the factor of a call."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from diffusers_oneflow import strengths
from diffusers_oneflow.strengths import Groups, Strength


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.words = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Embedding(5, 4)


@pytest.fixture
def adapted() -> torch.nn.Module:
    """Two linear layers and an embedding with LoRA."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["first", "second", "words"], init_lora_weights=False)
    return inject_adapter_in_model(config, Two(), "a")


def of(module: torch.nn.Module) -> list[Strength]:
    return [s for name, sub in module.named_modules() for s in strengths.found(name, sub) or []]


def test_what_is_found(adapted):
    found = of(adapted)
    assert [(s.layer, s.adapter, s.value) for s in found] == [("first", "a", 1.5), ("second", "a", 1.5), ("words", "a", 1.5)]
    # peft leaves embeddings alone when it scales layers.
    assert [s.scalable for s in found] == [True, True, False]
    assert strengths.found("", torch.nn.Linear(2, 2)) is None
    adapted.first.scaling["a"] = 2
    assert len(of(adapted)) == 2


def test_groups_are_split_and_never_joined(adapted):
    groups = Groups()
    assert groups.sort(of(adapted)).values(1.0) == [1.5, 1.5]
    first = groups.sort(of(adapted)).number
    adapted.first.set_scale("a", 2.0)
    split = groups.sort(of(adapted))
    assert split.values(1.0) == [3.0, 1.5, 1.5] and split.number != first
    adapted.second.set_scale("a", 2.0)
    assert groups.sort(of(adapted)).values(1.0) == [3.0, 3.0, 1.5] and groups.sort(of(adapted)).number == split.number


def test_a_factor_reaches_what_peft_scales(adapted):
    assert Groups().sort(of(adapted)).values(0.5) == [0.75, 1.5]
    for layer in (adapted.first, adapted.second, adapted.words):
        layer.scale_layer(0.5)
    assert [s.value for s in of(adapted)] == [0.75, 0.75, 1.5]


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_values_are_put_and_taken_back(adapted, kind):
    sorted_ = Groups().sort(of(adapted))
    values = [kind(0.25), kind(0.5)]
    with pytest.raises(KeyError), sorted_.put(adapted, values):
        assert adapted.first.scaling["a"] == 0.25 and adapted.words.scaling["a"] == 0.5
        adapted.first.scaling["a"] *= 2
        assert adapted.second.scaling["a"] == 0.25 and values[0] == 0.25
        raise KeyError
    assert [s.value for s in of(adapted)] == [1.5, 1.5, 1.5]


def test_tensors_stay_and_are_multiplied(adapted):
    own = adapted.first.scaling["a"] = torch.tensor(1.5)
    sorted_ = Groups().sort(of(adapted))
    assert sorted_.values(0.5) == [0.5, 0.75, 1.5]
    with sorted_.put(adapted, [torch.tensor(v) for v in sorted_.values(0.5)]):
        assert adapted.first.scaling["a"] == 0.75
    assert adapted.first.scaling["a"] is own and own == 1.5


def test_the_factor_of_a_call():
    from diffusers import FluxTransformer2DModel, UNet2DConditionModel

    unet, flux = (kind.__new__(kind) for kind in (UNet2DConditionModel, FluxTransformer2DModel))
    given = {"x": 1, "cross_attention_kwargs": {"scale": 0.5, "other": 2}}
    assert strengths.take_factor(unet, given) == ({"x": 1, "cross_attention_kwargs": {"other": 2}}, 0.5)
    assert given["cross_attention_kwargs"]["scale"] == 0.5
    # Flux takes it from another argument, and most modules from none.
    assert strengths.take_factor(flux, given) == (given, 1.0)
    assert strengths.take_factor(flux, {"joint_attention_kwargs": {"scale": 2}})[1] == 2.0
    assert strengths.take_factor(torch.nn.Linear(2, 2), given) == (given, 1.0)
    for options in (None, {}, {"scale": torch.tensor(0.5)}, {"scale": True}):
        assert strengths.take_factor(unet, {"cross_attention_kwargs": options})[1] == 1.0
