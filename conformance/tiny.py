"""Components alone: the small models of the lowerings' tests, and the T5 encoder of the pipelines."""

import functools

import torch

from diffusers_oneflow import engine
from diffusers_oneflow.parity import Report, component

from . import build
from .registry import Case, add, case


@case("t5", level="models")
def t5() -> Report:
    """The T5 text encoder of SD 3, Flux and PixArt: relative positions, RMS norm, gated GELU."""
    torch.manual_seed(0)
    ids = torch.randint(0, build.VOCABULARY, (2, 20))
    return Report([component(build.t5().eval(), (ids,), {}, "t5")])


def alone(kind: str) -> Report:
    """One of the models in tests/lowering/test_models.py, in one call."""
    from tests.lowering.test_models import KINDS, filled

    torch.manual_seed(0)
    model, args, kwargs = KINDS[kind]()
    return Report([component(filled(model.eval()), args, kwargs, kind)])


def register():
    """Make cases of these models; where OneFlow is not installed their tests cannot be imported, and there are none."""
    if engine.refusal():
        return
    from tests.lowering.test_models import KINDS

    for kind in KINDS:
        add(Case(f"model-{kind}", f"{kind} alone, in one call", functools.partial(alone, kind), level="models"))


register()
