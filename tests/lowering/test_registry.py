"""The table of lowerings, and that every lowering is tested."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

from diffusers_oneflow import engine
from diffusers_oneflow.errors import Unsupported

from . import harness

engine.load()

from diffusers_oneflow import lowering  # noqa: E402


def test_every_lowering_is_compared_with_torch():
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"{__package__}.{path.stem}")
    assert set(lowering.lowered_ops()) - harness.covered == set(), "ops without a test"
    assert harness.covered - set(lowering.lowered_ops()) == set(), "tests of ops that have no lowering"


@pytest.mark.parametrize("op", [op for op in lowering.lowered_ops() if op.startswith("aten.")])
def test_parameters_mirror_the_schema(op):
    """Names, order, defaults, and which are by name only: torch.export leaves out arguments that are at their default."""
    _, name, overload = op.split(".")
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    parameters = inspect.signature(lowering.find(op)).parameters
    known = list(parameters)
    for position, argument in enumerate(schema.arguments):
        assert argument.name in known, f"{op} has no parameter {argument.name}"
        parameter = parameters[argument.name]
        if argument.kwarg_only:
            assert parameter.kind != parameter.POSITIONAL_ONLY
        else:
            assert known[position] == argument.name
            assert parameter.kind == parameter.POSITIONAL_OR_KEYWORD
        if argument.has_default_value():
            assert parameter.default is not parameter.empty, f"{argument.name} has no default"
            if argument.name != "memory_format":  # where OneFlow has no such thing
                assert _plain(parameter.default) == _plain(argument.default_value), argument.name


def _plain(value):
    """``[1, 1]`` is written as 1, and no padding as 0."""
    if isinstance(value, (list, tuple)) and value:
        return value[0] if len(set(value)) == 1 else tuple(value)
    return {"valid": 0}.get(value, value) if isinstance(value, str) else () if value == [] else value


def test_an_op_is_lowered_once():
    with pytest.raises(ValueError, match="lowered twice"):
        lowering.lowering("aten.silu.default")(lambda self: self)


def test_what_has_no_lowering_is_refused():
    assert not lowering.is_lowered("aten.nothing.default")
    with pytest.raises(Unsupported, match="no lowering is registered"):
        lowering.find("aten.nothing.default")


def test_a_refusal_names_the_op():
    with pytest.raises(Unsupported, match=r"aten\.elu\.default cannot run on OneFlow: scale"):
        lowering.find("aten.elu.default")(None, 1, 2)
