"""What is installed, and what OneFlow can use of this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass

from . import engine, plugin
from .errors import EngineUnavailable
from .kernels import loader

PACKAGES = (
    "diffusers_oneflow", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "protobuf",
    "oneflow", "nvidia-cublas-cu11", "nvidia-cudnn-cu11",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; `problem` says what is wrong and what to do, and is empty where all is well."""

    name: str
    value: str
    problem: str = ""


def diagnose() -> list[Finding]:
    """Look at versions, the entry points and the devices; loads OneFlow if it can be loaded."""
    found = [Finding("Python", f"{platform.python_version()} ({sys.executable})")]
    for name in PACKAGES:
        try:
            found.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, "not installed"))
    return [*found, _entry_points(), *_engine()]


def _entry_points() -> Finding:
    try:
        plugin.find("oneflow")
    except ValueError as error:
        return Finding("backend 'oneflow'", "not registered", f"{error}: install diffusers_oneflow with pip")
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "0":
        return Finding(
            "backend 'oneflow'", "registered; TORCH_DEVICE_BACKEND_AUTOLOAD=0, so scripts must import diffusers_oneflow"
        )
    return Finding("backend 'oneflow'", "registered, found without an import")


def _engine() -> list[Finding]:
    reason = engine.refusal()
    if reason is None:
        try:
            engine.load()
        except EngineUnavailable as error:
            reason = str(error)
    if reason is not None:
        return [Finding("OneFlow", "cannot run", reason)]
    return [Finding("OneFlow", "loads"), Finding("CPU", f"usable, {os.cpu_count()} cores"), _pack(), _gpu()]


def _gpu() -> Finding:
    import torch

    from .config import OneFlowConfig
    from .replay import devices, nvidia

    if not torch.cuda.is_available():
        driver = os.path.exists("/proc/driver/nvidia/version")
        why = "torch sees no GPU under this driver" if driver else "this machine has no NVIDIA driver"
        return Finding("CUDA", f"not usable: {why}")
    if reason := devices.refusal(torch.device("cuda", torch.cuda.current_device()), OneFlowConfig()):
        return Finding("CUDA", "not usable: pipelines on CUDA run in torch", reason)
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Finding("CUDA", f"usable: {names}; kernels by {nvidia.libraries()}")


def _pack() -> Finding:
    if reason := loader.refusal():
        return Finding("kernel pack", "not usable: models run on OneFlow's own, slower kernels, in float32 only", reason)
    return Finding("kernel pack", f"usable, {loader.instruction_set()}")
