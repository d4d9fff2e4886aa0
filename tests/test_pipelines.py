"""OneFlow's pipeline classes: made from the stock ones, for scripts that say ``import oneflow as torch``."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch

import diffusers_oneflow
from conformance import controlnet, flux, sd3, sdxl, stable_diffusion
from conformance.table import Entry
from diffusers_oneflow import OneFlowConfig, engine, parity, plugin
from diffusers_oneflow.backend import OneFlowBackend, dispatcher_of, models

from . import single_file

flow = engine.load()

ENTRIES = {
    entry.pipeline: entry
    for family in (stable_diffusion, controlnet, sdxl, sd3, flux)
    for entry in reversed(family.ENTRIES)
    if not entry.variant
}
FAMILIES = [
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
]  # fmt: skip


def run(entry: Entry, pipe, generator, **arguments):
    """Two steps of an entry's call, as tensors."""
    inputs = dict(entry.inputs() if callable(entry.inputs) else entry.inputs)
    inputs.update(num_inference_steps=2, generator=generator, output_type="pt", **arguments)
    return pipe(**inputs).images


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_draws_what_the_stock_class_draws_in_torch(name):
    entry = ENTRIES[name]
    expected = run(entry, entry.make(), torch.Generator().manual_seed(1))
    pipe = dataclasses.replace(entry, module="diffusers_oneflow", pipeline=f"OneFlow{name}").make()
    assert isinstance(pipe, getattr(diffusers, name)) and OneFlowBackend.is_attached(pipe)
    images = run(entry, pipe, flow.Generator().manual_seed(1))
    assert isinstance(images, flow.Tensor) and images.numpy().shape == tuple(expected.shape)
    assert np.abs(images.numpy() - expected.numpy()).max() <= 1 / 255
    main = getattr(pipe, "unet", None) or pipe.transformer
    assert dispatcher_of(main).record.built
    assert not any(dispatcher_of(part).record.fallbacks for part in models(pipe).values())


@pytest.fixture
def oneflow_pipe(pipe):
    return diffusers_oneflow.OneFlowStableDiffusionPipeline(**pipe.components, requires_safety_checker=False)


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def image_of(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe("a red circle", num_inference_steps=2, output_type="np", **arguments).images)


def test_latents_and_embeddings_of_oneflow(pipe, oneflow_pipe):
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        words, empty = pipe.encode_prompt("a red circle", "cpu", 1, True)
        there = oneflow_pipe.encode_prompt("a red circle", flow.device("cpu"), 1, True)
    assert isinstance(there[0], torch.Tensor)  # only a device came in
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    expected = pipe(prompt_embeds=words, negative_prompt_embeds=empty, latents=latents, **arguments).images
    given = {
        "prompt_embeds": flow.tensor(words.numpy()), "negative_prompt_embeds": flow.tensor(empty.numpy()),
        "latents": flow.tensor(latents.numpy()),
    }  # fmt: skip
    images = oneflow_pipe(**given, **arguments).images
    assert isinstance(images, flow.Tensor) and np.abs(images.numpy() - expected.numpy()).max() <= 1 / 255
    assert np.array_equal(given["latents"].numpy(), latents.numpy())
    # And torch's as before.
    images = oneflow_pipe(prompt_embeds=words, negative_prompt_embeds=empty, latents=latents, **arguments).images
    assert isinstance(images, torch.Tensor) and (images - expected).abs().max() <= 1 / 255
    assert oneflow_pipe.dtype is torch.float32 and oneflow_pipe.device == torch.device("cpu")


def test_dtypes_and_devices_of_oneflow(oneflow_pipe, folder):
    assert oneflow_pipe.to(flow.device("cpu"), flow.float64) is oneflow_pipe and oneflow_pipe.unet.dtype is torch.float64
    oneflow_pipe.to(dtype=flow.bfloat16)
    assert oneflow_pipe.dtype is torch.bfloat16
    for argument in ("torch_dtype", "dtype"):
        loaded = diffusers_oneflow.OneFlowStableDiffusionPipeline.from_pretrained(folder, **{argument: flow.float16})
        assert loaded.unet.dtype is torch.float16 and loaded.text_encoder.dtype is torch.float16


def hub(folder, tmp_path) -> str:
    """The folder as a repository in a cache of the hub; its id."""
    repository = tmp_path / "cache/models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(folder)
    return "someone/tiny"


def test_from_a_hub_id(pipe, folder, tmp_path):
    name = hub(folder, tmp_path)
    there = diffusers_oneflow.OneFlowStableDiffusionPipeline.from_pretrained(
        name, cache_dir=tmp_path / "cache", local_files_only=True, torch_dtype=flow.float32
    )
    assert OneFlowBackend.is_attached(there)
    for name, weight in pipe.unet.named_parameters():
        assert torch.equal(there.unet.get_parameter(name), weight)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"])
def test_from_a_single_file(name, pipe, folder, tmp_path):
    """All weights come from the file, under the names of the original release; the rest from a folder."""
    single_file.save(pipe, tmp_path / "model.safetensors")
    there = getattr(diffusers_oneflow, f"OneFlow{name}").from_single_file(
        str(tmp_path / "model.safetensors"), config=str(folder), torch_dtype=flow.float32, local_files_only=True
    )
    assert isinstance(there, getattr(diffusers, name)) and OneFlowBackend.is_attached(there)
    for part in ("unet", "vae", "text_encoder"):
        expected, weights = getattr(pipe, part).state_dict(), getattr(there, part).state_dict()
        assert getattr(there, part) is not getattr(pipe, part) and set(weights) == set(expected)
        assert all(torch.equal(weights[key], value) for key, value in expected.items())
    seeded = [g.manual_seed(0) for g in (torch.Generator(), flow.Generator())]
    stock = getattr(diffusers, name)(**pipe.components, requires_safety_checker=False)
    given = {"image": torch.rand(1, 3, 16, 16), "strength": 1.0} if "Img2Img" in name else {}
    assert np.abs(image_of(stock, generator=seeded[0], **given) - image_of(there, generator=seeded[1], **given)).max() <= 1 / 255


def error_of(load) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        load()
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline", "DiffusionPipeline", "AutoPipelineForText2Image"])
@pytest.mark.parametrize("path", ["someone/not-there", "./no/such/folder", "not a/valid/id"])
def test_what_cannot_be_loaded_is_diffusers_own_error(name, path):
    """Offline, as all tests are."""
    ours, stock = (
        error_of(lambda cls=cls: cls.from_pretrained(path))
        for cls in (getattr(diffusers_oneflow, f"OneFlow{name}"), getattr(diffusers, name))
    )
    assert ours == stock and issubclass(ours[0], (OSError, ValueError))


@pytest.mark.parametrize("config", [None, "someone/not-there"])
def test_a_single_file_that_cannot_be_loaded_is_diffusers_own_error(pipe, tmp_path, config):
    file = tmp_path / "model.safetensors"
    single_file.save(pipe, file)
    for path in (file, tmp_path / "other.safetensors"):
        ours, stock = (
            error_of(lambda cls=cls, path=path: cls.from_single_file(str(path), config=config))
            for cls in (diffusers_oneflow.OneFlowStableDiffusionPipeline, diffusers.StableDiffusionPipeline)
        )
        assert ours == stock


def test_classes_of_diffusers_choose_the_oneflow_class(folder):
    for name in ("OneFlowDiffusionPipeline", "OneFlowAutoPipelineForText2Image"):
        there = getattr(diffusers_oneflow, name).from_pretrained(folder, torch_dtype=flow.float32)
        assert type(there) is diffusers_oneflow.OneFlowStableDiffusionPipeline and OneFlowBackend.is_attached(there)


def test_what_it_saves_is_a_stock_pipeline(oneflow_pipe, tmp_path):
    oneflow_pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path)) is diffusers.StableDiffusionPipeline


def test_other_pipelines_are_made_from_it(oneflow_pipe):
    drawn = diffusers_oneflow.OneFlowStableDiffusionImg2ImgPipeline.from_pipe(oneflow_pipe)
    assert drawn.unet is oneflow_pipe.unet and OneFlowBackend.is_attached(drawn)
    assert type(diffusers.AutoPipelineForInpainting.from_pipe(oneflow_pipe)) is diffusers.StableDiffusionInpaintPipeline


def test_it_leaves_oneflow_when_told_to(pipe, oneflow_pipe):
    oneflow_pipe.to(backend="torch")
    assert not OneFlowBackend.is_attached(oneflow_pipe)
    seeded = [g.manual_seed(0) for g in (torch.Generator(), flow.Generator())]
    assert np.array_equal(*(image_of(p, generator=g) for p, g in zip((pipe, oneflow_pipe), seeded)))


def test_a_new_model_joins(oneflow_pipe):
    oneflow_pipe.to(backend="oneflow", backend_config=OneFlowConfig(fallback="error"))
    unet, vae = copy.deepcopy(oneflow_pipe.unet), copy.deepcopy(oneflow_pipe.vae)
    for part in (unet, vae.encoder, vae.decoder):
        diffusers_oneflow.detach(part)
    oneflow_pipe.unet, oneflow_pipe.vae = unet, vae
    for part in (unet, vae.encoder, vae.decoder):
        assert dispatcher_of(part).config.fallback == "error"
    oneflow_pipe.to(backend="torch")
    oneflow_pipe.unet = copy.deepcopy(unet)
    assert dispatcher_of(oneflow_pipe.unet) is None


def test_a_class_can_be_extended(pipe):
    class Mine(diffusers_oneflow.OneFlowStableDiffusionPipeline):
        """A user's own."""

    mine = Mine(**pipe.components, requires_safety_checker=False)
    mine.unet = copy.deepcopy(mine.unet)
    assert OneFlowBackend.is_attached(mine) and dispatcher_of(mine.unet) is not None


def test_classes_are_found_by_name_and_by_pickle():
    cls = diffusers_oneflow.OneFlowFluxPipeline
    assert cls is diffusers_oneflow.OneFlowFluxPipeline and issubclass(cls, diffusers.FluxPipeline)
    assert "OneFlowFluxPipeline" in repr(cls) and pickle.loads(pickle.dumps(cls)) is cls
    for name in ("OneFlowNoSuchPipeline", "OneFlowUNet2DConditionModel"):
        with pytest.raises(AttributeError, match=f"no class {name}"):
            getattr(diffusers_oneflow, name)


def test_every_stock_pipeline_has_one():
    """Those that diffusers shows with the packages that are installed here."""
    classes = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Pipeline")}
    stock = {name for name, c in classes.items() if isinstance(c, type) and issubclass(c, diffusers.DiffusionPipeline)}
    assert len(stock) > 150
    for name in stock - {"DiffusionPipeline"}:
        assert issubclass(getattr(diffusers_oneflow, f"OneFlow{name}"), getattr(diffusers, name))


def test_components_are_read_from_the_signature(pipe, oneflow_pipe):
    assert set(oneflow_pipe.components) == set(pipe.components)
    assert plugin.find("oneflow").is_attached(oneflow_pipe)


THREE_LINES = """
import oneflow as torch
from diffusers_oneflow import OneFlowStableDiffusionPipeline as StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({path!r}, torch_dtype=torch.float32)
pipe = pipe.to("cpu")
pipe.set_progress_bar_config(disable=True)
latents = torch.randn(1, 4, 8, 8, device=pipe.device, dtype=pipe.dtype)
kept = latents.numpy().copy()
with torch.autocast("cpu"):
    image = pipe("a red circle", generator=torch.Generator().manual_seed(1), num_inference_steps=2).images[0]
assert (latents.numpy() == kept).all()
torch.manual_seed(4)
drawn = pipe("a red circle", num_inference_steps=2, output_type="pt").images
assert isinstance(drawn, torch.Tensor), type(drawn)
image.save({out!r})
import numpy
numpy.save({out!r} + ".npy", drawn.numpy())
"""


def test_three_lines(pipe, folder, tmp_path):
    out = str(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", THREE_LINES.format(path=str(folder), out=out)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from PIL import Image

    def drawn(pipe):
        return np.asarray(pipe("a red circle", generator=torch.Generator().manual_seed(1), num_inference_steps=2).images[0])

    with torch.autocast("cpu"):
        expected = drawn(pipe)
        off = np.abs(np.asarray(Image.open(out), dtype=float) - expected).max()
        assert off <= parity.most_levels(pipe, drawn, expected, off)
    assert "FallbackWarning" not in done.stderr
    torch.manual_seed(4)
    expected = pipe("a red circle", num_inference_steps=2, output_type="pt").images
    assert np.abs(np.load(out + ".npy") - expected.numpy()).max() <= 1 / 255
