"""Mock torch with stock diffusers, in real interpreters as a user starts them."""

import os
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from . import single_file

ROOT = Path(__file__).parent.parent
HOOK = "diffusers_oneflow_mock.pth"
SHELL = f"eval $({Path(sys.executable).parent}/oneflow-mock-torch 2>/dev/null)"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A Python environment in which this package is installed: the packages of ours, this folder, and the hook."""
    where = tmp_path_factory.mktemp("environment")
    venv.create(where, symlinks=True)
    packages = next(where.glob("lib/python*/site-packages"))
    installed = next(p for p in map(Path, sys.path) if (p / "diffusers").is_dir())
    # Read before the hook, as what an editable install leaves. All of our environment's own such files are read, save
    # a hook that is installed there already: it would hide what is tested.
    others = [p.name for p in sorted(installed.glob("*.pth")) if p.name != HOOK]
    # Such lines run among the names of Python's site.py.
    read = f"import sys; [addpackage({str(installed)!r}, name, None) for name in {others}]"
    (packages / "__others.pth").write_text(f"{ROOT}\n{installed}\n{read}\n")
    (packages / HOOK).write_bytes((ROOT / HOOK).read_bytes())
    return where / "bin/python"


def shell(command: str, folder: Path, *, fails: bool = False) -> str:
    """What a command line prints in a shell without this test's PYTHONPATH; fails with its stderr."""
    # Nor what a launcher, or a test of several processes before this one, has left there.
    left = ("PYTHONPATH", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {k: v for k, v in os.environ.items() if k not in left and not k.startswith("ACCELERATE_")}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=600,
        env={**environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


USER = """
import importlib, sys
import torch
import torch.nn.functional as F
from torch import nn
import beside
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
import accelerate, diffusers, oneflow, transformers
import diffusers.models.modeling_utils as theirs

# The script and its own modules see OneFlow, libraries see torch.
assert torch.__version__ == oneflow.__version__ and torch.Tensor is oneflow.Tensor and F.relu is oneflow.nn.functional.relu
assert beside.torch is torch and importlib.import_module("torch") is torch and nn.Linear is oneflow.nn.Linear
real = sys.modules["torch"]
assert theirs.torch is real and hasattr(real, "export") and issubclass(diffusers.UNet2DModel, real.nn.Module)
assert transformers.modeling_utils.torch is real and accelerate.accelerator.torch is real

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32).to(device)
pipe.set_progress_bar_config(disable=True)
assert type(pipe) is StableDiffusionPipeline and pipe.dtype == torch.float32 and pipe.device.type == device
assert pipe.unet.dtype == torch.float32
seen = []

def callback(pipe, step, timestep, tensors):
    seen.append(tensors["latents"])
    return {"latents": tensors["latents"] + torch.zeros_like(tensors["latents"])}

generator = torch.Generator(device).manual_seed(1)
whole = pipe("a red circle", num_inference_steps=2, generator=generator, output_type="pt", callback_on_step_end=callback).images
assert isinstance(whole, torch.Tensor) and len(seen) == 2 and all(isinstance(x, torch.Tensor) for x in seen)
torch.manual_seed(4)
seeded = pipe("a red circle", num_inference_steps=2, output_type="pt").images

# The same by hand.
length = pipe.tokenizer.model_max_length
words = pipe.tokenizer(["", "a red circle"], padding="max_length", max_length=length, return_tensors="pt").input_ids
assert isinstance(words, torch.Tensor)
with torch.no_grad():
    states = pipe.text_encoder(words.to(device))[0]
    pipe.scheduler.set_timesteps(2, device=pipe.device)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator(device).manual_seed(4), device=device)
    noise = pipe.unet(torch.cat([latents] * 2), pipe.scheduler.timesteps[0], encoder_hidden_states=states).sample
    before, after = noise.chunk(2)
    latents = pipe.scheduler.step(before + 7.5 * (after - before), pipe.scheduler.timesteps[0], latents).prev_sample
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    again = pipe.vae.encode(image).latent_dist.mode()
assert all(isinstance(x, torch.Tensor) for x in (states, noise, latents, image, again)) and image.shape == (1, 3, 16, 16)

# What OneFlow lacks comes from torch.
assert torch.channels_last is real.channels_last and not hasattr(torch, "no_such_thing")
spectrum = torch.special.expit(torch.zeros(2))
assert isinstance(spectrum, torch.Tensor) and spectrum.numpy().tolist() == [0.5, 0.5]
torch.backends.cuda.matmul.allow_tf32 = True
assert real.backends.cuda.matmul.allow_tf32 is True
pipe.unet = torch.compile(pipe.unet.to(memory_format=torch.channels_last), mode="reduce-overhead", fullgraph=True)

import diffusers_oneflow
graphs = diffusers_oneflow.explain(pipe, show=False)
assert graphs["unet"].graphs and not graphs.fallbacks, graphs.fallbacks
auto = AutoPipelineForText2Image.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
made = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
for other in (auto, made):
    assert diffusers_oneflow.backend.OneFlowBackend.is_attached(other), other
import numpy
numpy.savez(sys.argv[2], whole=whole.numpy(), seeded=seeded.numpy())
"""


def test_a_script_runs_unchanged(pipe, python, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    (tmp_path / "beside.py").write_text("import torch\n")
    (tmp_path / "script.py").write_text(USER)
    shell(f"{SHELL}; {python} script.py tiny images.npz", tmp_path)
    images = np.load(tmp_path / "images.npz")
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    expected = pipe("a red circle", generator=torch.Generator().manual_seed(1), **arguments).images
    assert np.abs(images["whole"] - expected.numpy()).max() <= 1 / 255
    torch.manual_seed(4)
    assert np.abs(images["seeded"] - pipe("a red circle", **arguments).images.numpy()).max() <= 1 / 255


def test_a_script_draws_what_it_draws_with_torch(pipe, python, tmp_path):
    """Random numbers to the bit, images within 1 of 255."""
    pipe.save_pretrained(tmp_path / "tiny")
    single_file.save(pipe, tmp_path / "model.safetensors")
    (tmp_path / "script.py").write_text((ROOT / "tests/unchanged_script.py").read_text())
    assert shell(f"{python} script.py stock.npz", tmp_path) == ""
    # Every model ran on OneFlow in every call, that in half precision where oneDNN has it.
    fallbacks = shell(f"{SHELL}; {python} script.py mocked.npz", tmp_path).split()
    half = torch.ops.mkldnn._is_mkldnn_fp16_supported()
    assert fallbacks[0] == "0" and len(fallbacks) == 2 and (fallbacks[1] == "0") == half
    stock, mocked = (dict(np.load(tmp_path / name)) for name in ("stock.npz", "mocked.npz"))
    assert set(stock) == set(mocked)
    for name, expected in stock.items():
        assert mocked[name].dtype == expected.dtype and mocked[name].shape == expected.shape, name
        if name.endswith(("image", "half")):
            assert np.abs(mocked[name].astype(float) - expected).max() <= 1 / 255, name
        elif name.endswith("step"):
            np.testing.assert_allclose(mocked[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert np.array_equal(mocked[name], expected), name


def test_what_it_saves_overrides_and_asks_for_is_as_with_torch(pipe, python, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    (tmp_path / "script.py").write_text((ROOT / "tests/files_and_schedulers.py").read_text())
    stock, mocked = (shell(f"{start}{python} script.py tiny", tmp_path).splitlines() for start in ("", f"{SHELL}; "))
    assert [line.split()[0] for line in stock[:5]] == ["image", "file", "buffer", "safetensors", "generated"]
    assert stock[0].split()[1] == "3" and not any("made" in line for line in stock)
    assert mocked == stock


def test_run_does_it_for_one_script(python, tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent("""
        import sys, torch, beside
        import diffusers.models.modeling_utils as theirs
        print(torch.__version__, theirs.torch.__version__.split("+")[0], beside.torch is torch, sys.argv[1:], __name__)
        if "--fail" in sys.argv:
            raise RuntimeError("on purpose")
        sys.exit(3)
    """))  # fmt: skip
    (tmp_path / "beside.py").write_text("import torch\n")
    run = f"{python} -c 'from diffusers_oneflow.cli import app; app()' run script.py"
    said = shell(f"{run} --steps 3 --help; echo code $?", tmp_path)
    assert said == f"0.9.0 {torch.__version__.split('+')[0]} True ['--steps', '3', '--help'] __main__\ncode 3\n"
    error = shell(f"{run} --fail", tmp_path, fails=True)
    assert error.count("File ") == 1 and 'script.py", line 6' in error and "RuntimeError: on purpose" in error
    assert "there is no script other.py" in shell(run.replace("script.py", "other.py"), tmp_path, fails=True)


def test_processes_of_the_script_are_mocked_too(python, tmp_path):
    (tmp_path / "script.py").write_text("import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'], check=True)\n")
    (tmp_path / "child.py").write_text(
        "import torch, diffusers.utils, sys\nprint(torch.__version__, sys.modules['torch'].__version__)\n"
    )
    for command in (f"{SHELL}; {python}", f"{python} -c 'from diffusers_oneflow.cli import app; app()' run"):
        # The child's own torch is OneFlow, that of the libraries is torch.
        assert shell(f"{command} script.py", tmp_path) == f"0.9.0 {torch.__version__}\n"


def test_a_start_without_it_loads_nothing(python, tmp_path):
    code = "import sys; print([m for m in sys.modules if 'oneflow' in m], len(sys.modules))"
    bare = shell(f'{python} -c "{code}"', tmp_path)
    hook = next(python.parent.parent.glob(f"lib/python*/site-packages/{HOOK}"))
    hook.rename(hook.with_suffix(".off"))
    try:
        without = shell(f'{python} -c "{code}"', tmp_path)
    finally:
        hook.with_suffix(".off").rename(hook)
    assert bare == without


def test_nothing_breaks_a_start(python, tmp_path):
    """A package that is gone, or broken, costs one line under mock torch, and nothing without."""
    (tmp_path / "diffusers_oneflow").mkdir()
    (tmp_path / "diffusers_oneflow/__init__.py").write_text("raise SystemError('broken')")
    run = f"{python} -c 'print(1 + 1)'"
    assert shell(f"export PYTHONPATH=.; {run} 2>&1", tmp_path) == "2\n"
    said = shell(f"export PYTHONPATH=.; {SHELL}; {run} 2>&1", tmp_path)
    # Python 3.10 reads the hooks of a virtual environment twice.
    assert set(said.splitlines()) == {"diffusers_oneflow could not prepare mock torch: broken", "2"}
    assert shell(f"{SHELL}; {python} -I -c 'print(1 + 1)' 2>&1", tmp_path) == "2\n"


@pytest.mark.parametrize("command", ["-c 'import torch; print(torch.__version__)'", "-m beside", "- < beside.py"])
def test_other_ways_to_start_a_script(python, tmp_path, command):
    (tmp_path / "beside.py").write_text("import torch; print(torch.__version__)\n")
    assert shell(f"{SHELL}; {python} {command}", tmp_path) == "0.9.0\n"


def test_a_missing_engine_is_said(python, tmp_path):
    (tmp_path / "oneflow").mkdir()
    (tmp_path / "oneflow/__init__.py").write_text("raise ImportError('libcublas.so.11 is missing')")
    (tmp_path / "script.py").write_text("import torch")
    error = shell(f"{SHELL}; {python} script.py", tmp_path, fails=True)
    assert "ImportError: mock torch is on, and" in error and "libcublas.so.11 is missing" in error


def test_the_kernel_pack_is_used(python, tmp_path):
    """Though OneFlow is loaded first, by a script that needs torch only later."""
    (tmp_path / "script.py").write_text(
        "import torch\ntorch.zeros(1)\nfrom diffusers_oneflow.kernels import loader\nprint(repr(loader.refusal()))\n"
    )
    assert shell(f"{SHELL}; {python} script.py", tmp_path) == "''\n"
