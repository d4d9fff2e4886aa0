"""Attaching models to OneFlow, in place, and detaching them again."""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import engine
from .config import OneFlowConfig
from .dispatch import Dispatcher
from .errors import EngineUnavailable
from .parts import Parts

_ATTRIBUTE = "_oneflow_dispatcher"


class Attachment:
    """Kept on an attached module: holds its dispatcher, and lets copies of the module be attached too.

    A pickled module carries None in its place: it comes back detached, without this package.
    """

    def __init__(self, dispatcher: Dispatcher, previous: Any) -> None:
        self.dispatcher, self.previous = dispatcher, previous

    def __deepcopy__(self, memo: dict[Any, Any]) -> Attachment | None:
        original = self.dispatcher.module
        copy = memo.get(id(original))
        # Parts are found again by what they are parts of.
        if copy is None or self.dispatcher.part:
            return None
        dispatcher = Dispatcher(copy, self.dispatcher.path, self.dispatcher.config, _split)
        # deepcopy drops _compiled_call_impl from the state it copies, so this stays.
        copy.__dict__["_compiled_call_impl"] = dispatcher
        return Attachment(dispatcher, None)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def attach(module: torch.nn.Module, path: str, config: OneFlowConfig) -> None:
    """Let calls of `module` run on OneFlow; an attached module only gets the new options.

    Args:
        path: the name under which messages and `explain` speak of it.

    Raises:
        EngineUnavailable: weights cannot be released here; nothing was changed.
    """
    if config.weights == "release" and (reason := engine.native().release_refusal()):
        raise EngineUnavailable(f'weights="release" is not possible here: {reason}; or use weights="shared"')
    detach(module)
    _guard_compile()
    _place(module, Dispatcher(module, path, config, _split))


def _place(module: torch.nn.Module, dispatcher: Dispatcher) -> None:
    previous = module.__dict__.get("_compiled_call_impl")
    module.__dict__[_ATTRIBUTE] = Attachment(dispatcher, previous)
    module.__dict__["_compiled_call_impl"] = dispatcher


def _split(dispatcher: Dispatcher) -> Parts:
    return Parts(dispatcher, _place, detach)


def detach(module: torch.nn.Module) -> bool:
    """Give `module` back to torch and free its graphs; False if it was not attached."""
    attachment = module.__dict__.pop(_ATTRIBUTE, None)
    if attachment is None:
        return False
    attachment.dispatcher.close()
    if attachment.previous is None:
        module.__dict__.pop("_compiled_call_impl", None)
    else:
        module.__dict__["_compiled_call_impl"] = attachment.previous
    return True


def dispatcher_of(module: torch.nn.Module) -> Dispatcher | None:
    """The dispatcher of an attached module."""
    attachment = module.__dict__.get(_ATTRIBUTE)
    return attachment.dispatcher if attachment is not None else None


@functools.cache
def _guard_compile() -> None:
    """Make ``module.compile()`` raise on an attached module: it would silently take OneFlow's place."""
    original = torch.nn.Module.compile

    @functools.wraps(original)
    def compile(self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        if dispatcher_of(self) is not None:
            raise RuntimeError(
                f"{type(self).__name__} runs on OneFlow and cannot be compiled by torch as well: "
                'call pipe.to(backend="torch") or diffusers_oneflow.detach(module) first'
            )
        return original(self, *args, **kwargs)

    patched: Any = torch.nn.Module
    patched.compile = compile


def targets(name: str, model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules of one pipeline component that calls go through, by path.

    Pipelines call ``vae.encode`` and ``vae.decode``, which tile, slice and run hooks before they reach
    ``vae.encoder`` and ``vae.decoder`` (Würstchen's: ``vqgan.down_blocks`` and ``vqgan.up_blocks``); all other models are
    called themselves.
    """
    for names in (("encoder", "decoder"), ("down_blocks", "up_blocks")):
        halves: dict[str, Any] = {part: getattr(model, part, None) for part in names}
        called = {f"{name}.{part}": m for part, m in halves.items() if _is_called(m)}
        if called and hasattr(model, "encode") and hasattr(model, "decode"):
            return called
    return {name: model}


def _is_called(part: object) -> bool:
    return isinstance(part, torch.nn.Module) and not isinstance(part, torch.nn.ModuleList)


def models(pipe: Any) -> dict[str, torch.nn.Module]:
    """The modules of a pipeline (or a single module) that OneFlow runs, by path."""
    if isinstance(pipe, torch.nn.Module):
        return targets(type(pipe).__name__, pipe)
    found = {}
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            found.update(targets(name, component))
    return found


class OneFlowBackend:
    """The backend ``oneflow`` of the entry-point group ``diffusers.backends``."""

    name = "oneflow"

    @staticmethod
    def attach(pipe: Any, config: OneFlowConfig | None = None) -> None:
        """Let all models of `pipe` run as OneFlow graphs, compiled at their first calls.

        Raises:
            EngineUnavailable: OneFlow cannot run here; nothing was changed.
        """
        if reason := engine.refusal():
            raise EngineUnavailable(reason)
        engine.load()
        for path, module in models(pipe).items():
            attach(module, path, config or OneFlowConfig())

    @staticmethod
    def detach(pipe: Any) -> None:
        """Give all models of `pipe` back to torch."""
        for module in models(pipe).values():
            detach(module)

    @staticmethod
    def is_attached(pipe: Any) -> bool:
        """True if any model of `pipe` runs on OneFlow."""
        return any(dispatcher_of(m) is not None for m in models(pipe).values())

    @staticmethod
    def fallbacks(pipe: Any) -> dict[str, str]:
        """Path -> reasons, for the models of `pipe` of which a call ran in torch since they were attached."""
        found = {path: dispatcher_of(module) for path, module in models(pipe).items()}
        return {path: "; ".join(d.record.fallbacks) for path, d in found.items() if d is not None and d.record.fallbacks}


backend = OneFlowBackend()
