"""The devices on which graphs can be replayed."""

from collections.abc import Callable

import torch

from ..config import OneFlowConfig
from ..kernels import loader
from . import nvidia
from .device import Device, Plain

# By torch's name for the type of device: what makes one, and says why there can be none.
_Refusal = Callable[[torch.device, OneFlowConfig], str | None]
_KINDS: dict[str, tuple[Callable[[torch.device], Device], _Refusal]] = {"cuda": (nvidia.Cuda, nvidia.refusal)}
# One for each device, since runs of all its graphs come after each other.
_MADE: dict[torch.device, Device] = {}


def register(kind: str, make: Callable[[torch.device], Device], refusal: _Refusal = lambda device, config: None) -> None:
    """Let models on another type of device run as graphs there.

    Args:
        kind: torch's name for it (``xpu``).
        make: called once for each device of that type.
        refusal: called with a device and the options: why there are no graphs on it, in words that say what to do.
    """
    _KINDS[kind] = make, refusal
    for device in [device for device in _MADE if device.type == kind]:
        del _MADE[device]


def refusal(device: torch.device, config: OneFlowConfig) -> str | None:
    """Why graphs cannot be replayed on `device`, in words that say what to do; None if they can."""
    if device.type not in _KINDS:
        return f"a model on {device}: OneFlow runs on the CPU and on {', '.join(sorted(_KINDS)).upper()}"
    if config.kernels != "native" or loader.refusal():
        return f"a model on {device} without the kernel pack ({loader.refusal() or 'kernels=' + repr(config.kernels)})"
    return _KINDS[device.type][1](device, config)


def device_for(device: torch.device) -> Device:
    """The device that graphs for tensors on `device` are replayed on; the same one for all of them."""
    known = _MADE.get(device)
    if known is None:
        made = _KINDS[device.type][0](device) if device.type in _KINDS else Plain(device)
        known = _MADE.setdefault(device, made)
    return known
