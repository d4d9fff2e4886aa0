"""What of diffusers, transformers and accelerate translates what a script under mock torch passes to it.

Each class is extended right after its module has run (`plugin.after`), in place: the script imports the stock ones. A method
(and a function of `_FUNCTIONS`) translates where its caller is the script, or where OneFlow's objects come in; calls within
the libraries pass through. Pipelines that the script makes run on OneFlow, as after ``pipe.to(backend="oneflow")``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, cast

from . import mock_names

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
    "accelerate.accelerator": {"Accelerator": ("device", "gather", "gather_for_metrics", "reduce", "pad_across_processes")},
}
# Classes that pipelines and models inherit from beside those above, which bring their subclasses in.
_MIXINS = {
    "diffusers.loaders.single_file": {"FromSingleFileMixin": None},
    "diffusers.loaders.single_file_model": {"FromOriginalModelMixin": None},
    "diffusers.loaders.textual_inversion": {"TextualInversionLoaderMixin": None},
    "transformers.generation.utils": {"GenerationMixin": ("generate",)},
    "transformers.modeling_utils": {"ModuleUtilsMixin": ("device", "dtype")},
}
# Functions of theirs that a script calls with tensors and generators.
_FUNCTIONS = {
    "diffusers.utils.torch_utils": ("randn_tensor",),
    "safetensors.torch": ("save", "save_file", "load", "load_file"),
}
# Classes whose `device` is an attribute.
_STATES = {"accelerate.state": ("PartialState", "AcceleratorState")}
_SEEDING = ("accelerate.utils.random", "transformers.trainer_utils", "diffusers.training_utils")


def _extend(module: ModuleType) -> None:
    """Put the classes of a module that has just run at the border."""
    from . import border_setup

    border_setup.install()
    both: Any = ((_MIXINS, _extend_class), (_BORDER, _with_subclasses))
    for classes, extend in both:
        for name, only in classes.get(module.__name__, {}).items():
            if (cls := getattr(module, name, None)) is not None:
                extend(cls, only)


def _extend_functions(module: ModuleType) -> None:
    from . import border, border_setup

    border_setup.install()
    for name in _FUNCTIONS[module.__name__]:
        setattr(module, name, border.crossing(getattr(module, name)))


def _extend_states(module: ModuleType) -> None:
    import torch

    for name in _STATES[module.__name__]:
        _speak_of(torch.device, getattr(module, name))


def _extend_seeding(module: ModuleType) -> None:
    cast(Any, module).set_seed = mock_names.follow(module.set_seed)


AFTER = {
    **dict.fromkeys((*_BORDER, *_MIXINS), _extend),
    **dict.fromkeys(_FUNCTIONS, _extend_functions),
    **dict.fromkeys(_STATES, _extend_states),
    **dict.fromkeys(_SEEDING, _extend_seeding),
}


def _with_subclasses(base: Any, only: tuple[str, ...] | None) -> None:
    import torch

    from . import border

    if issubclass(base, torch.nn.Module):
        base.__call__ = border.crossing(base.__call__)
    if base.__name__ == "SchedulerMixin":
        _speak_of(torch.Tensor, base)
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

    # The script's own subclasses speak OneFlow themselves; a pipeline calls those of a scheduler.
    where = sys.modules.get(cls.__module__)
    if mock.is_script(vars(where) if where else {"__name__": cls.__module__}):
        if any(base.__name__ == "SchedulerMixin" for base in cls.__mro__):
            _call_back(cls)
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


def _call_back(cls: type) -> None:
    from . import border

    for name, member in list(vars(cls).items()):
        if name.startswith("_"):
            continue
        if inspect.isfunction(member):
            setattr(cls, name, border.called_back(member))
        elif isinstance(member, property) and member.fget is not None:
            setattr(cls, name, property(border.called_back(member.fget), member.fset, member.fdel, member.__doc__))
    write: Any = cls.__setattr__

    def __setattr__(self: Any, name: str, value: Any) -> None:
        write(self, name, border.inward(value))  # the library reads it as well

    cast(Any, cls).__setattr__ = __setattr__


def _makes_pipelines(cls: type) -> bool:
    names = [base.__name__ for base in cls.__mro__]
    return any(name in ("DiffusionPipeline", "FromSingleFileMixin") or name.startswith("AutoPipelineFor") for name in names)


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


def _speak_of(kind: type, base: Any) -> None:
    """Let a script read attributes of that kind, such as `timesteps` and `sigmas` of a scheduler, as OneFlow's."""
    from . import border

    read = base.__getattribute__

    def __getattribute__(self: Any, name: str) -> Any:
        value = read(self, name)
        if isinstance(value, kind) and border.speaks_oneflow(sys._getframe(1).f_globals):
            return border.outward(value)
        return value

    base.__getattribute__ = __getattribute__
