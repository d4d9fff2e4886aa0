"""Gives stock diffusers pipelines `pipe.to(backend=...)`.

`autoload` is called by ``import torch`` (entry-point group ``torch.backends``), so this module imports
nothing but the standard library, and nothing here may raise. diffusers cannot be imported at that
point, since it may be what imported torch: an import hook extends its two `to` methods right after
their modules have run.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

GROUP = "diffusers.backends"
_TARGETS = {
    "diffusers.pipelines.pipeline_utils": "DiffusionPipeline",
    "diffusers.modular_pipelines.modular_pipeline": "ModularPipeline",
}
# Module -> what else is done with it right after it has run (`mock_libraries`).
after: dict[str, Callable[[ModuleType], None]] = {}


def autoload() -> None:
    """Extend diffusers now where it is imported already, else when it will be. Never raises."""
    try:
        for name in {**_TARGETS, **after}:
            # A module that is being imported is in sys.modules without its class: the finder is too
            # late for it, so its loader is wrapped where it stands.
            if name in sys.modules and not _will_extend(sys.modules[name]):
                _extend(sys.modules[name])
        if not any(isinstance(f, _Finder) for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    except Exception as error:  # `import torch` must not fail for any program on the machine
        print(f"diffusers_oneflow could not extend diffusers: {error}", file=sys.stderr)


def _will_extend(module: ModuleType) -> bool:
    """Whether the loader of a module that is running will extend it: it may be what imports torch."""
    spec = module.__spec__
    return spec is not None and isinstance(spec.loader, _Loader) and getattr(spec, "_initializing", False)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself; wraps the loader of the two modules."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _TARGETS and fullname not in after:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs a module as its own loader does, then extends it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        try:
            _extend(module)
        except Exception as error:  # diffusers must import whatever happens here
            print(f"diffusers_oneflow could not extend {module.__name__}: {error}", file=sys.stderr)


def _extend(module: ModuleType) -> None:
    if module.__name__ in _TARGETS:
        _extend_to(getattr(module, _TARGETS[module.__name__], None))
    # Once: a module may be seen both when it is found and when it has run.
    if (extra := after.pop(module.__name__, None)) is not None:
        extra(module)


def _extend_to(cls: Any) -> None:
    # A diffusers that knows backends itself is left alone.
    if cls is None or hasattr(cls.to, "_takes_backend") or "backend" in inspect.signature(cls.to).parameters:
        return
    original = cls.to

    @functools.wraps(original)
    def to(self: Any, *args: Any, backend: str | None = None, backend_config: object = None, **kwargs: Any) -> Any:
        if backend is None and backend_config is not None:
            raise ValueError("backend_config needs backend as well, as in pipe.to(backend='oneflow', backend_config=...)")
        chosen = find(backend) if backend is not None else None
        pipe = original(self, *args, **kwargs) if args or kwargs or backend is None else self
        if chosen is not None:
            switch(pipe, chosen, backend_config)
        return pipe

    to.__doc__ = (original.__doc__ or "") + _DOC
    marked: Any = to
    marked._takes_backend = True
    cls.to = to


_DOC = """
        Added by diffusers_oneflow:
            backend (`str`, *optional*):
                What runs the pipeline's models: "torch", or a backend that a package offers in the
                entry-point group `diffusers.backends`, such as "oneflow".
            backend_config (*optional*):
                Options for that backend (`diffusers_oneflow.OneFlowConfig`).
"""


class _Torch:
    """The backend every pipeline starts with: leaving all others is all it takes."""

    @staticmethod
    def attach(pipe: Any, config: object = None) -> None:
        """Nothing to do."""

    @staticmethod
    def detach(pipe: Any) -> None:
        """Nothing to do."""


def available() -> dict[str, EntryPoint | None]:
    """Backend name -> its entry point; "torch" is always there."""
    from importlib.metadata import entry_points

    return {"torch": None, **{point.name: point for point in entry_points(group=GROUP)}}


def find(name: str) -> Any:
    """The backend object called `name`, with ``attach(pipe[, config])`` and ``detach(pipe)``.

    Raises:
        ValueError: no package offers it; the message names those available.
    """
    points = available()
    if not isinstance(name, str) or name not in points:
        raise ValueError(f"unknown backend {name!r}; available: {', '.join(sorted(points))}")
    return _Torch if (point := points[name]) is None else point.load()


def switch(pipe: Any, chosen: Any, config: object = None) -> None:
    """Take `pipe` off every other backend and attach it to `chosen`; if that fails, it is left on torch."""
    for point in available().values():
        # Only a backend that is imported can have attached anything.
        if point is not None and point.module in sys.modules and (other := point.load()) is not chosen:
            other.detach(pipe)
    if config is None:
        chosen.attach(pipe)
    else:
        chosen.attach(pipe, config)
