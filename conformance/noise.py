"""The same random numbers on every device and in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_LIKE = {torch.randn_like: torch.randn, torch.rand_like: torch.rand}
_PLAIN = {torch.randn, torch.rand}


class SameNoise(TorchFunctionMode):
    """Meanwhile ``torch.randn`` and its like draw on the CPU in float32, and round and move what they drew.

    From one seed torch draws other numbers in float16 than in float32, and others on a GPU than on the CPU: two runs that
    are to give one image could not be compared.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """A call of any of torch's functions; only those that draw normal or uniform floats are changed."""
        kwargs = dict(kwargs or {})
        if func in _LIKE:
            like = args[0] if args else kwargs.pop("input")
            kwargs = {"dtype": like.dtype, "device": like.device, **{k: v for k, v in kwargs.items() if v is not None}}
            return self._draw(_LIKE[func], (like.shape,), kwargs)
        if func in _PLAIN and kwargs.get("out") is None:
            return self._draw(func, args, kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _draw(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dtype, device = kwargs.pop("dtype", None) or torch.get_default_dtype(), kwargs.pop("device", None) or "cpu"
        generator = kwargs.get("generator")
        if not dtype.is_floating_point or dtype == torch.float64 or (generator and generator.device.type != "cpu"):
            return func(*args, dtype=dtype, device=device, **kwargs)
        kwargs.pop("memory_format", None)
        kwargs.pop("pin_memory", None)
        return func(*args, dtype=torch.float32, device="cpu", **kwargs).to(device, dtype)
