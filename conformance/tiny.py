"""Components alone: the small models of the lowerings' tests, and the T5 encoder of the pipelines."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from diffusers_oneflow import engine, signature
from diffusers_oneflow.parity import Component, Report

from . import build
from .place import NotApplicable, Place, here
from .registry import Case, add, case

# Those that are judged in bfloat16 as well: of each kind of layer one.
HALF = ("unet", "vae_decoder", "clip_text", "t5", "sd3", "flux")
Compare = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any], str], Component]


def _more_texts(t: torch.Tensor) -> torch.Tensor:
    """Of a mask or of tokens (n, length) 32 times as many, tokens shuffled: of few numbers the largest error is chance.

    Masks are not: where those of a causal model were, a token attended to none, and what that gives is each kernel's own affair.
    """
    more = t.repeat(32, 1)
    is_mask = t.max() <= 1
    return more if is_mask else more.flatten()[torch.randperm(more.numel())].view_as(more)


def component(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> Component:
    """Compare a module and its inputs where cases run, in the dtype of that place."""
    return _component(module, args, kwargs, path, here())


def bfloat16(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> Component:
    """The same in bfloat16.

    Raises:
        NotApplicable: the place has a half type, in which these modules are compared under their own names.
    """
    if here().dtype != "float32":
        raise NotApplicable(f"compared in {here().dtype} by the case without bf16 in its name")
    return _component(module, args, kwargs, path, replace(here(), dtype="bfloat16"))


def _component(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str, place: Place) -> Component:
    flat = signature.flatten((args, kwargs))
    if place.dtype != "float32" and not any(t.is_floating_point() for t in flat.tensors):
        args, kwargs = signature.rebuild(flat.spec, [_more_texts(t) for t in flat.tensors])
    return place.component(module, args, kwargs, path)


@case("t5", level="models")
def t5() -> Report:
    """The T5 text encoder of SD 3, Flux and PixArt: relative positions, RMS norm, gated GELU."""
    torch.manual_seed(0)
    ids = torch.randint(0, build.VOCABULARY, (2, 20))
    return Report([component(build.t5().eval(), (ids,), {}, "t5")])


def alone(kind: str, compare: Compare = component) -> Report:
    """One of the models in tests/lowering/test_models.py, in one call."""
    from tests.lowering.test_models import KINDS, filled

    torch.manual_seed(0)
    model, args, kwargs = KINDS[kind]()
    return Report([compare(filled(model.eval()), args, kwargs, kind)])


def register() -> None:
    """Make cases of these models; where OneFlow is not installed their tests cannot be imported, and there are none."""
    if engine.refusal():
        return
    from tests.lowering.test_models import KINDS

    for kind in KINDS:
        add(Case(f"model-{kind}", f"{kind} alone, in one call", functools.partial(alone, kind), level="models"))
    for kind in HALF:
        name, about = f"model-{kind}-bf16", f"{kind} alone, in one call in bfloat16"
        add(Case(name, about, functools.partial(alone, kind, bfloat16), level="models"))


register()
