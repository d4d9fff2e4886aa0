"""Which classes of diffusers and transformers translate what a script under mock torch passes to them.

Each is extended right after its module has run (`plugin.after`), in place: the script imports the stock classes. A
method translates where its caller is the script, or where OneFlow's objects come in; calls within the libraries
pass through. Pipelines that the script makes run on OneFlow, as after ``pipe.to(backend="oneflow")``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, cast

# Methods that a class and its subclasses have at the border; None: all public ones.
_MODEL = ("from_pretrained", "from_single_file", "from_config", "to", "encode", "decode", "device", "dtype", "get_text_features",
          "get_image_features", "add_noise", "load_state_dict")  # fmt: skip
_BORDER: dict[str, dict[str, tuple[str, ...] | None]] = {
    "diffusers.pipelines.pipeline_utils": {"DiffusionPipeline": None},
    "diffusers.pipelines.auto_pipeline": {
        f"AutoPipelineFor{task}": None for task in ("Text2Image", "Image2Image", "Inpainting", "Text2Audio")
    },
    "diffusers.models.modeling_utils": {"ModelMixin": _MODEL},
    "diffusers.models.autoencoders.vae": {"DiagonalGaussianDistribution": None},
    "diffusers.schedulers.scheduling_utils": {"SchedulerMixin": None},
    "diffusers.image_processor": {"VaeImageProcessor": None},
    "transformers.modeling_utils": {"PreTrainedModel": _MODEL},
    "transformers.models.auto.auto_factory": {"_BaseAutoModelClass": ("from_pretrained", "from_config")},
    "transformers.tokenization_utils_base": {"PreTrainedTokenizerBase": None},
    "transformers.image_processing_base": {"ImageProcessingMixin": None},
    "transformers.processing_utils": {"ProcessorMixin": None},
}


def _extend(module: ModuleType) -> None:
    """Put the classes of a module that has just run at the border."""
    from . import border

    border.install()
    for name, only in _BORDER[module.__name__].items():
        base = getattr(module, name, None)
        if base is not None:
            _with_subclasses(base, only)


AFTER = {name: _extend for name in _BORDER}


def _with_subclasses(base: Any, only: tuple[str, ...] | None) -> None:
    import torch

    from . import border

    if issubclass(base, torch.nn.Module):
        base.__call__ = border.crossing(base.__call__)
    if base.__name__ == "SchedulerMixin":
        _speak_of_tensors(base)
    for cls in _family(base):
        _extend_class(cls, only)
    before = base.__init_subclass__

    @functools.wraps(before)
    def __init_subclass__(cls: type, **options: Any) -> None:
        before.__func__(cls, **options) if hasattr(before, "__func__") else before(**options)
        _extend_class(cls, only)

    base.__init_subclass__ = classmethod(cast(Any, __init_subclass__))


def _family(base: Any) -> Iterator[type]:
    yield base
    for cls in base.__subclasses__():
        yield from _family(cls)


def _extend_class(cls: Any, only: tuple[str, ...] | None) -> None:
    from . import border, mock

    # The script's own subclasses speak OneFlow themselves.
    where = sys.modules.get(cls.__module__)
    if mock.is_script(vars(where) if where else {"__name__": cls.__module__}):
        return
    made = border.namespace(cls, inherited=False)
    for name, value in made.items():
        if only is None or name in only:
            setattr(cls, name, value)
    if _makes_pipelines(cls):
        for name in ("from_pretrained", "from_single_file", "from_pipe"):
            if isinstance(static := cls.__dict__.get(name), classmethod):
                setattr(cls, name, classmethod(_on_oneflow(static.__func__)))
        if "__init__" in cls.__dict__ and not cls.__name__.startswith("AutoPipeline"):
            cls.__init__ = _starting(cls.__init__)


def _makes_pipelines(cls: type) -> bool:
    return any(base.__name__ == "DiffusionPipeline" or base.__name__.startswith("AutoPipelineFor") for base in cls.__mro__)


def _on_oneflow(function: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor whose pipelines run on OneFlow if the script called it."""
    from . import border

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Any:
        speaks = border.speaks_oneflow(sys._getframe(1).f_globals)
        pipe = function(*border.inward(args), **border.inward(kwargs))
        if speaks:
            _switch(pipe)
        return pipe

    return make


def _starting(original: Callable[..., Any]) -> Callable[..., None]:
    from . import border

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *border.inward(args), **border.inward(kwargs))
        if border.speaks_oneflow(sys._getframe(1).f_globals):
            _switch(self)

    return __init__


def _switch(pipe: Any) -> None:
    from . import plugin

    plugin.switch(pipe, plugin.find("oneflow"))


def _speak_of_tensors(base: Any) -> None:
    """Let a script read `timesteps`, `sigmas` and the like of a scheduler as OneFlow's tensors."""
    import torch

    from . import border

    read = base.__getattribute__

    def __getattribute__(self: Any, name: str) -> Any:
        value = read(self, name)
        if isinstance(value, torch.Tensor) and border.speaks_oneflow(sys._getframe(1).f_globals):
            return border.outward(value)
        return value

    base.__getattribute__ = __getattribute__
