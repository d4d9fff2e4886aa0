"""`pipe.to(backend=...)` on stock diffusers: how it gets there, and what it does."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from diffusers_oneflow import EngineUnavailable, plugin
from diffusers_oneflow.backend import OneFlowBackend, backend, dispatcher_of

HAS_BACKEND = """
from diffusers import DiffusionPipeline
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
assert DiffusionPipeline.to._takes_backend and ModularPipeline.to._takes_backend
print("ready", "oneflow" in sys.modules)
"""


def python(code: str, **environment) -> str:
    """What a fresh interpreter prints; fails with its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + textwrap.dedent(code)],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first", ["import torch", "import diffusers", "import transformers, accelerate", "import diffusers.pipelines.pipeline_utils"]
)
def test_found_by_entry_point_whatever_is_imported_first(first):
    assert python(f"{first}\n{HAS_BACKEND}") == "ready False"


def test_without_autoload_an_import_is_enough():
    off = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    for order in ("import diffusers_oneflow, diffusers", "import diffusers, diffusers_oneflow"):
        assert python(f"{order}\n{HAS_BACKEND}", **off) == "ready False"
    stock = "from diffusers import DiffusionPipeline\nprint(hasattr(DiffusionPipeline.to, '_takes_backend'))"
    assert python(stock, **off) == "False"


def test_a_broken_oneflow_breaks_neither_torch_nor_diffusers(tmp_path):
    (tmp_path / "oneflow").mkdir()
    (tmp_path / "oneflow/__init__.py").write_text("raise ImportError('libcublas.so.11 is missing')")
    code = """
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    unet = UNet2DModel(sample_size=8, block_out_channels=(4,), norm_num_groups=2, layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    pipe = DDPMPipeline(unet, DDPMScheduler())
    try:
        pipe.to(backend="oneflow")
    except RuntimeError as error:
        print(type(error).__name__, error)
    pipe.to("cpu", torch.float64)
    print(unet.dtype, unet._compiled_call_impl)
    """
    said = python(code, PYTHONPATH=str(tmp_path)).splitlines()
    assert said[0].startswith("EngineUnavailable") and "libcublas.so.11 is missing" in said[0]
    assert said[1] == "torch.float64 None"


def test_a_plugin_that_fails_does_not_break_import_torch(monkeypatch, capsys):
    def fail(module):
        raise RuntimeError("no such class")

    monkeypatch.setattr(plugin, "_extend", fail)
    plugin.autoload()
    assert "no such class" in capsys.readouterr().err


def test_the_pipe_comes_back_and_draws_as_torch_does(pipe, draw):
    expected = draw(pipe)
    assert pipe.to(backend="oneflow") is pipe
    image = draw(pipe)
    assert np.abs(image - expected).max() <= 1 / 255
    assert dispatcher_of(pipe.unet).record.built == 1 and not dispatcher_of(pipe.unet).record.fallbacks
    assert pipe.to(backend="torch") is pipe
    assert np.array_equal(draw(pipe), expected)
    assert not OneFlowBackend.is_attached(pipe) and "_oneflow_dispatcher" not in pipe.unet.__dict__


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}), (("cpu",), {}), ((torch.device("cpu"), torch.float64), {}), ((torch.float64,), {}),
        ((), {"device": "cpu", "dtype": torch.float64}), (("cpu",), {"dtype": torch.float64, "silence_dtype_warnings": True}),
    ],
)  # fmt: skip
def test_backend_goes_with_device_and_dtype(pipe, args, kwargs):
    assert pipe.to(*args, backend="oneflow", **kwargs) is pipe
    assert OneFlowBackend.is_attached(pipe)
    wants_double = torch.float64 in (*args, *kwargs.values())
    assert pipe.unet.dtype == (torch.float64 if wants_double else torch.float32)


def test_without_backend_nothing_changes(pipe):
    assert pipe.to("cpu") is pipe and not OneFlowBackend.is_attached(pipe)
    pipe.to(backend="oneflow").to("cpu")
    assert OneFlowBackend.is_attached(pipe)


@pytest.mark.parametrize("name", ["onflow", "", "Torch", 3])
def test_an_unknown_backend_names_those_available(pipe, name):
    with pytest.raises(ValueError, match="available: oneflow, torch"):
        pipe.to(backend=name)


def test_options_need_a_backend_and_are_checked(pipe):
    with pytest.raises(ValueError, match="backend_config needs backend"):
        pipe.to("cpu", backend_config=object())


def test_the_group_is_public(pipe, monkeypatch):
    seen = []

    class Other:
        def attach(self, pipe):
            seen.append("attach")

        def detach(self, pipe):
            seen.append("detach")

    other = Other()

    class Point:
        name, module = "other", __name__

        @staticmethod
        def load():
            return other

    real = plugin.available()
    monkeypatch.setattr(plugin, "available", lambda: {**real, "other": Point})
    pipe.to(backend="oneflow").to(backend="other")
    assert seen == ["detach", "attach"] and not OneFlowBackend.is_attached(pipe)
    pipe.to(backend="oneflow")
    assert seen == ["detach", "attach", "detach"] and OneFlowBackend.is_attached(pipe)
    assert real["oneflow"].load() is backend


def test_on_a_python_without_wheels_the_reason_is_said(pipe, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    with pytest.raises(EngineUnavailable, match=r"Python 3\.12.*use a Python 3\.10 environment"):
        pipe.to(backend="oneflow")


def test_modular_pipelines_take_a_backend_too():
    from diffusers.modular_pipelines import ModularPipelineBlocks
    from diffusers.modular_pipelines.modular_pipeline import ModularPipeline

    assert ModularPipeline.to._takes_backend and ModularPipelineBlocks is not None
