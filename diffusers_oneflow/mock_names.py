"""Names of torch that are not OneFlow's own for a script under mock torch: random numbers, seeds, modes, `compile`.

Random numbers are torch's, drawn with torch's generators: a script gets the numbers that it gets with torch, and one stream
with the pipelines that it calls. OneFlow's seed follows, for what OneFlow draws by itself (dropout, ``tensor.normal_()``).

`OVERRIDES` maps a full name to a function that makes the object; `mock.Face` calls it when the script first asks.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

_DRAWN = (
    "randn", "rand", "randint", "randperm", "normal", "bernoulli", "multinomial", "randn_like", "rand_like", "randint_like",
    "get_rng_state", "set_rng_state",
)  # fmt: skip
# Of floating-point numbers of the default dtype, which is OneFlow's.
_OF_DEFAULT_DTYPE = ("randn", "rand")
# OneFlow's, but only once the border is there do they reach torch.
_AT_THE_BORDER = ("manual_seed", "Generator", "autocast", "cuda.manual_seed", "cuda.manual_seed_all")


def _drawn(name: str) -> Callable[..., Any]:
    import torch

    from . import border, border_setup, engine

    flow = engine.flow()
    border_setup.install()
    theirs = getattr(torch, name)

    @functools.wraps(theirs)
    def draw(*args: Any, **kwargs: Any) -> Any:
        if "placement" in kwargs or "sbp" in kwargs:  # of no torch script
            return getattr(flow, name)(*args, **kwargs)
        wanted = kwargs.pop("requires_grad", False)
        if name in _OF_DEFAULT_DTYPE and kwargs.get("dtype") is None:
            kwargs["dtype"] = flow.get_default_dtype()
        made = border.outward(theirs(*border.inward(args), **border.inward(kwargs)))
        return made.requires_grad_() if wanted else made

    return draw


def _of_oneflow(name: str) -> Any:
    from . import border_setup, engine

    border_setup.install()
    found: Any = engine.flow()
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _seed() -> Callable[..., Any]:
    manual_seed = _of_oneflow("manual_seed")

    def seed() -> int:
        """Seed both with a number that nobody chose, and return it."""
        import torch

        chosen = torch.seed()
        manual_seed(chosen)
        return chosen

    return seed


def follow(set_seed: Callable[..., Any]) -> Callable[..., Any]:
    """A library's `set_seed`, which seeds torch, for OneFlow as well."""

    @functools.wraps(set_seed)
    def both(*args: Any, **kwargs: Any) -> Any:
        import torch

        from . import border_setup, engine

        border_setup.install()
        result = set_seed(*args, **kwargs)
        # Not the argument: accelerate may add the number of the process.
        engine.flow().manual_seed(torch.initial_seed())
        return result

    return both


def _mode(name: str) -> type:
    """A mode of gradients, as a decorator without parentheses too, and left where torch leaves it."""
    from . import engine

    ours: Any = getattr(engine.flow(), name)

    class Mode(ours):  # type: ignore[misc]  # what it is, is known at run time alone
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            if args and callable(args[0]):
                return cls()(args[0])
            return super().__new__(cls)

        def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
            return functools.wraps(function)(super().__call__(function))

        def __exit__(self, *error: object) -> None:
            # OneFlow's own lasts as long as this object.
            self.grad_mode = None

    Mode.__name__ = Mode.__qualname__ = name
    Mode.__doc__ = ours.__doc__
    return Mode


def _set_grad_enabled() -> type:
    """OneFlow's is a mode alone; torch's also works as a statement."""
    from oneflow._oneflow_internal.autograd import AutoGradMode

    from . import engine

    flow: Any = engine.flow()
    held: list[Any] = []

    def switch(on: bool) -> None:
        # An AutoGradMode leaves what was there before it when it is freed.
        if flow.is_grad_enabled() != on:
            held.clear()
        if flow.is_grad_enabled() != on:
            held.append(AutoGradMode(on))

    class set_grad_enabled:
        def __init__(self, mode: bool) -> None:
            self.mode, self.before = bool(mode), flow.is_grad_enabled()
            switch(self.mode)

        def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
            switch(self.before)

            @functools.wraps(function)
            def within(*args: Any, **kwargs: Any) -> Any:
                with set_grad_enabled(self.mode):
                    return function(*args, **kwargs)

            return within

        def __enter__(self) -> Any:
            switch(self.mode)
            return self

        def __exit__(self, *error: object) -> None:
            switch(self.before)

    return set_grad_enabled


def _compile() -> Callable[..., Any]:
    """``torch.compile`` of a script: modules of torch become OneFlow graphs; OneFlow's own stay as they are."""

    def compile(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile, **options)
        import torch

        if not isinstance(model, torch.nn.Module):
            return model
        from . import compiler
        from .backend import dispatcher_of, models

        if any(dispatcher_of(part) is None for part in models(model).values()):
            compiler.compile(model)
        return model

    return compile


def _save() -> Callable[..., None]:
    """``torch.save``, into files that torch reads; OneFlow's own makes a folder."""
    import torch

    from . import border

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        torch.save(border.inward(obj), f, *args, **kwargs)

    return functools.wraps(torch.save)(save)


def _load() -> Callable[..., Any]:
    """``torch.load``, and OneFlow's own for the folders that it makes."""
    import torch

    from . import border, engine

    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, (str, os.PathLike)) and os.path.isdir(f):
            return engine.flow().load(os.fspath(f), map_location)
        return border.outward(torch.load(f, border.inward(map_location), *args, **kwargs))

    return functools.wraps(torch.load)(load)


OVERRIDES: dict[str, Callable[[], Any]] = {
    "torch.compile": _compile,
    "torch.load": _load,
    "torch.save": _save,
    "torch.seed": _seed,
    "torch.set_grad_enabled": _set_grad_enabled,
    **{f"torch.{name}": functools.partial(_mode, name) for name in ("no_grad", "enable_grad", "inference_mode")},
    **{f"torch.{name}": functools.partial(_drawn, name) for name in _DRAWN},
    **{f"torch.{name}": functools.partial(_of_oneflow, name) for name in _AT_THE_BORDER},
    # The same functions by their other names.
    **{f"torch.random.{name}": functools.partial(_drawn, name) for name in ("get_rng_state", "set_rng_state")},
    "torch.random.manual_seed": functools.partial(_of_oneflow, "manual_seed"),
    "torch.random.seed": _seed,
}
