"""The stock pipelines on OneFlow, for scripts that speak OneFlow: ``OneFlowStableDiffusionPipeline`` and all others.

``OneFlow`` before the name of any pipeline class of diffusers gives a subclass of it that

- runs its models on OneFlow from the start, as after ``pipe.to(backend="oneflow")``; a model that is put in place of
  another joins it, and ``pipe.to(backend="torch")`` takes all back,
- takes OneFlow's tensors, dtypes, devices and generators in all its methods, and returns OneFlow's tensors where any
  came in, or where the calling module says ``import oneflow as torch`` (`border`).

Nothing is copied from diffusers: classes are made when they are first asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch

from . import border, border_setup, engine, plugin
from .errors import EngineUnavailable

PREFIX = "OneFlow"


@functools.cache
def of(stock: type) -> type:
    """The OneFlow class of a stock pipeline class."""
    border_setup.install()
    space = border.namespace(stock, inherited=True)
    space["__init__"] = _starting(cast(Any, stock).__init__)
    space["__setattr__"] = _joining(stock.__setattr__)
    space["__doc__"] = f"`{stock.__name__}` on OneFlow; see `diffusers_oneflow.pipelines`.\n\n{stock.__doc__ or ''}"
    space["__module__"] = __name__
    # pickle and repr go by the qualified name. diffusers goes by __name__, which therefore is the stock one: into
    # model_index.json, which stock diffusers has to read, and into the tables of AutoPipeline and of single files.
    space["__qualname__"] = PREFIX + stock.__name__
    return type(stock.__name__, (stock,), space)


def named(name: str) -> type:
    """The class called `name`, such as ``OneFlowFluxPipeline``, or a loader that finds the class (``OneFlowDiffusionPipeline``).

    Raises:
        AttributeError: diffusers has no such pipeline.
        EngineUnavailable: OneFlow cannot run here.
    """
    import diffusers

    stock = getattr(diffusers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    chooses = stock is not None and (stock is diffusers.DiffusionPipeline or stock.__name__.startswith("AutoPipelineFor"))
    if not chooses and not (isinstance(stock, type) and issubclass(stock, diffusers.DiffusionPipeline)):
        raise AttributeError(f"no class {name}: put {PREFIX!r} before the name of a pipeline class of diffusers")
    if reason := engine.refusal():
        raise EngineUnavailable(reason)
    # Before the script's first op: OneFlow takes some settings only then.
    engine.load()
    border_setup.install()
    return _loader(stock) if chooses else of(stock)


@functools.cache
def _loader(stock: type) -> type:
    """A class whose constructors return what those of `stock` return, as its OneFlow class."""
    space: dict[str, Any] = {"__doc__": f"`{stock.__name__}` that gives OneFlow pipelines.", "__module__": __name__}
    for name in ("from_pretrained", "from_single_file", "from_pipe"):
        if function := getattr(stock, name, None):
            space[name] = staticmethod(_adopting(function))
    return type(PREFIX + stock.__name__, (), space)


def _adopting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def load(*args: Any, **kwargs: Any) -> Any:
        return adopt(function(*border.inward(args), **border.inward(kwargs)))

    return load


def adopt(pipe: Any) -> Any:
    """Make a stock pipeline one of its OneFlow class, on OneFlow, in place; and return it."""
    pipe.__class__ = of(cast(Hashable, type(pipe)))
    plugin.switch(pipe, plugin.find("oneflow"))
    return pipe


def _starting(original: Callable[..., Any]) -> Callable[..., None]:
    # diffusers reads the names of the components from the signature, which wraps keeps.
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *border.inward(args), **border.inward(kwargs))
        plugin.switch(self, plugin.find("oneflow"))

    return __init__


def _joining(original: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(original)
    def __setattr__(self: Any, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        original(self, name, value)
        if isinstance(before, torch.nn.Module) and isinstance(value, torch.nn.Module) and before is not value:
            _join(name, before, value)

    return __setattr__


def _join(name: str, before: torch.nn.Module, model: torch.nn.Module) -> None:
    """Attach a model that takes the place of one on OneFlow, with the options of that one."""
    from .backend import attach, dispatcher_of, targets

    # A dispatcher is false where libraries look for torch.compile's, so `is not None`.
    known = [d for part in targets(name, before).values() if (d := dispatcher_of(part)) is not None]
    for path, part in targets(name, model).items():
        if known and dispatcher_of(part) is None:
            attach(part, path, known[0].config)


def __getattr__(name: str) -> type:
    # Unpickling finds the classes here.
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return named(name)
