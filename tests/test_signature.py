"""Taking calls apart and putting them together again."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from hypothesis import given
from hypothesis import strategies as st

from diffusers_oneflow.signature import Unkeyable, flatten, places, rebuild, rebuild_call

Pair = namedtuple("Pair", "first second")


@dataclass
class Options:
    scale: float
    mask: object = None


TENSORS = st.integers(0, 3).map(lambda n: torch.full((n, 2), float(n)))
LEAVES = st.one_of(TENSORS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just(torch.float16))
VALUES = st.recursive(
    LEAVES,
    lambda v: st.one_of(
        st.lists(v, max_size=3),
        st.lists(v, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), v, max_size=3),
        st.tuples(v, v).map(lambda p: Pair(*p)),
        st.tuples(st.floats(), v).map(lambda p: Options(*p)),
    ),
    max_leaves=8,
)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, float):
        return type(b) is float and a.hex() == b.hex()
    if type(a) is not type(b):
        return False
    if isinstance(a, Options):
        return same(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(VALUES)
def test_a_value_comes_back_as_it_was(value):
    flat = flatten(value)
    hash(flat.spec)
    assert same(rebuild(flat.spec, flat.tensors), value)


@given(VALUES, VALUES)
def test_other_values_have_other_specs(a, b):
    # Tensors are no part of it: equal specs mean values that are equal but for the tensors in them.
    flat, other = flatten(a), flatten(b)
    if flat.spec == other.spec:
        assert same(rebuild(flat.spec, flat.tensors), rebuild(other.spec, flat.tensors))


def test_what_looks_equal_in_python_is_told_apart():
    specs = {flatten(v).spec for v in (1, 1.0, True, 0.0, -0.0, None, "1", (1,), [1], {"a": 1}, OrderedDict(a=1))}
    assert len(specs) == 11


def test_numbers_of_a_call_are_open_where_they_are_arguments():
    call = flatten(((2.0, [3, {"kept": 4.0}]), {"scale": 0.5, "options": {"lora": 0.7}, "flag": True}), open_numbers=True)
    assert call.numbers == [2.0, 3, 0.5]
    args, kwargs = rebuild_call(call.spec, [], [20.0, 30, 5.0])
    assert args == (20.0, [30, {"kept": 4.0}])
    assert kwargs == {"scale": 5.0, "options": {"lora": 0.7}, "flag": True}


def test_a_tensor_in_two_places_has_two():
    a, b = torch.ones(2), torch.zeros(3)
    flat = flatten(({"x": [a, b]}, (a, 7), b))
    assert len(flat.tensors) == 2
    assert list(places(flat.spec)) == [0, 1, 0, 1]


def test_model_outputs_come_back_as_themselves():
    made = UNet2DConditionOutput(sample=torch.ones(2))
    flat = flatten(made)
    back = rebuild(flat.spec, [torch.zeros(2)])
    assert type(back) is UNet2DConditionOutput
    assert back.sample is back[0]
    assert back["sample"].sum() == 0


@pytest.mark.parametrize("value", [object(), {1.5: 2}, {"a": [lambda: 0]}, iter([1])])
def test_what_cannot_be_a_key_is_refused_by_its_type(value):
    with pytest.raises(Unkeyable):
        flatten(value)
