"""Where cases run: a device and a dtype. Models are made and seeded on the CPU in float32, and are moved there."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from diffusers_oneflow import OneFlowConfig, building, judged, parity
from diffusers_oneflow.errors import EngineUnavailable
from diffusers_oneflow.kernels import loader
from diffusers_oneflow.replay import devices

from .noise import SameNoise

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class NotApplicable(Exception):
    """A case that means nothing at this place; the message says why."""


@dataclass(frozen=True)
class Place:
    """A device of torch's, and the dtype of models on it.

    Attributes:
        device: as torch names it.
        dtype: one of `DTYPES`.
        replay: graphs take the way of other devices than the CPU (`diffusers_oneflow.replay`) on the CPU too, with torch's
            own ops: what goes wrong there goes wrong on every device.
    """

    device: str = "cpu"
    dtype: str = "float32"
    replay: bool = False

    @property
    def is_usual(self) -> bool:
        """Whether it is the place of the committed baseline."""
        return self == _USUAL

    @property
    def name(self) -> str:
        """For files and reports: ``cuda``, ``cuda-float16``, ``cpu-replay``."""
        parts = (torch.device(self.device).type, self.dtype if self.dtype != "float32" else "", "replay" * self.replay)
        return "-".join(filter(None, parts))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        return DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """The device as tensors have it, with its index."""
        return torch.zeros(1, device=self.device).device

    @property
    def elsewhere(self) -> bool:
        """Whether graphs are replayed."""
        return self.replay or torch.device(self.device).type != "cpu"

    @property
    def baseline(self) -> Path:
        """The baseline of this place, which may not exist; of the usual one on a processor without AMX, what differs there."""
        kind = (loader.instruction_set() or "amx") if self.is_usual else self.name
        return Path(__file__).with_name("baseline.json" if kind == "amx" else f"baseline-{kind}.json")

    def arguments(self) -> list[str]:
        """For a worker's command line; `parse` reads them."""
        return [self.device, self.dtype, "replay" if self.replay else "graph"]

    def config(self) -> OneFlowConfig:
        """How OneFlow runs here."""
        return OneFlowConfig(progress=False, cuda=torch.device(self.device).type == "cuda")

    def check(self, backend: str) -> None:
        """See that torch, and OneFlow if it is what is judged, can use the device.

        Raises:
            EngineUnavailable: one of them cannot.
        """
        try:
            torch.zeros(1, device=self.device, dtype=self.torch_dtype).add(1).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise EngineUnavailable(f"torch cannot use {self.device}: {str(error).strip().splitlines()[0]}") from error
        device = self.torch_device
        if backend == "oneflow" and device.type != "cpu" and (reason := devices.refusal(device, self.config())):
            raise EngineUnavailable(reason)

    def moved(self, value: Any) -> Any:
        """Nested `value` with its tensors here, floating-point ones in the dtype; float32 as an argument becomes the dtype."""
        return tree_map_only((torch.Tensor, torch.dtype), self._moved, value)

    def _moved(self, value: torch.Tensor | torch.dtype) -> torch.Tensor | torch.dtype:
        if isinstance(value, torch.dtype):
            return self.torch_dtype if value == torch.float32 else value
        narrow = value.dtype == torch.float32 and self.dtype != "float32"
        if torch.device(self.device).type == "cpu" and not narrow:
            return value
        if value.layout != torch.strided or value.is_conj() or value.is_neg():
            return value.to(self.device, self.torch_dtype if narrow else None)
        # The whole memory, so that strides, overlaps and offsets stay what they are.
        memory = torch.empty(0, dtype=value.dtype).set_(value.detach().untyped_storage())
        memory = memory.to(self.device, self.torch_dtype if narrow else value.dtype)
        return memory.as_strided(value.shape, value.stride(), value.storage_offset())

    def inputs(self, pipe: Any, value: Any) -> Any:
        """Nested `value` for a pipeline at this place: rounded to the place's dtype, in the dtype of the pipeline's models."""
        moved = self.moved(value)
        if pipe.dtype != torch.float32:
            return moved
        return tree_map_only(torch.Tensor, lambda t: t.float() if t.dtype == self.torch_dtype else t, moved)

    def move_pipeline(self, pipe: Any) -> Any:
        """`pipe` with its models here, in the dtype."""
        if self.dtype != "float32":
            pipe.to(self.torch_dtype)
        if self.device != "cpu":
            pipe.to(self.device)
        return pipe

    def component(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = ""
    ) -> parity.Component:
        """`parity.component` of a module and its call, both moved here.

        Args:
            module: in float32, or in a dtype of its own, which it keeps.
        """
        floats = {t.dtype for t in module.parameters() if t.is_floating_point()}
        module = module.to(self.device, self.torch_dtype if floats == {torch.float32} else None)
        args, kwargs = self.moved((args, kwargs))
        return parity.component(module, args, kwargs, path)


_USUAL = Place()
_HERE = contextvars.ContextVar("where cases run", default=_USUAL)


def here() -> Place:
    """Where cases run now."""
    return _HERE.get()


def parse(device: str, dtype: str, way: str) -> Place:
    """What `Place.arguments` made."""
    return Place(device, dtype, way == "replay")


@contextlib.contextmanager
def running(place: Place, backend: str) -> Iterator[None]:
    """Judge `backend` at a place meanwhile, with TensorFloat32 off.

    Raises:
        ValueError: no package offers the backend.
    """
    token = _HERE.set(place)
    # float32 means float32: by default torch lets cuDNN's convolutions round to 10 bits.
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    allowed, exact = [switch.allow_tf32 for switch in switches], torch.backends.cudnn.deterministic
    for switch in switches:
        switch.allow_tf32 = False
    # A call is compared with the same call again; some of cuDNN's kernels add in another order each time.
    torch.backends.cudnn.deterministic = True
    compile = building.Builder.compile
    if place.replay:
        building.Builder.compile = building.Builder.compile_elsewhere  # type: ignore[method-assign]  # put back below
    try:
        with judged.judging(backend, place.config()):
            yield
    finally:
        building.Builder.compile = compile  # type: ignore[method-assign]  # as it was
        for switch, before in zip(switches, allowed):
            switch.allow_tf32 = before
        torch.backends.cudnn.deterministic = exact
        _HERE.reset(token)


def noise() -> contextlib.AbstractContextManager[object]:
    """A context in which pipelines draw the noise that they draw on the CPU in float32."""
    return contextlib.nullcontext() if here().is_usual else SameNoise()
