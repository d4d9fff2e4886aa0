"""OneFlow as a backend of diffusers: ``pipe.to(backend="oneflow")``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import plugin, started  # noqa: F401 - not later

if TYPE_CHECKING:
    from .compiler import compile as compile
    from .compiler import detach as detach
    from .config import OneFlowConfig as OneFlowConfig
    from .demo import demo_model as demo_model
    from .errors import EngineUnavailable as EngineUnavailable
    from .errors import FallbackWarning as FallbackWarning
    from .errors import OneFlowError as OneFlowError
    from .errors import Unsupported as Unsupported
    from .explain import Explanation as Explanation
    from .explain import explain as explain

__version__ = "0.1.0"

# What is imported on first use, so that importing this package costs nothing and cannot fail.
_PUBLIC = {
    "compile": "compiler",
    "detach": "compiler",
    "explain": "explain",
    "Explanation": "explain",
    "OneFlowConfig": "config",
    "OneFlowError": "errors",
    "EngineUnavailable": "errors",
    "Unsupported": "errors",
    "FallbackWarning": "errors",
    "demo_model": "demo",
}

__all__ = ["__version__", *_PUBLIC]

# With TORCH_DEVICE_BACKEND_AUTOLOAD=0 nobody else does.
plugin.autoload()


def __getattr__(name: str) -> Any:
    if name.startswith("OneFlow") and name not in _PUBLIC:
        from .pipelines import named

        return named(name)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
