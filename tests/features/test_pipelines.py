"""Pipelines made of others, saved, loaded, copied, pickled."""

import copy
import pickle
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from conformance.draw import picture
from diffusers_oneflow.backend import OneFlowBackend, dispatcher_of

from .pair import SD, Pair, draw, stable_diffusion


def pair(only: str | None = "unet") -> Pair:
    return Pair(stable_diffusion, SD, only)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_saved_files_are_those_of_torch(tmp_path):
    both = pair(only=None)
    expected = both.draw()
    both.stock.save_pretrained(tmp_path / "stock")
    both.attached.save_pretrained(tmp_path / "attached")
    stock, attached = contents(tmp_path / "stock"), contents(tmp_path / "attached")
    assert stock == attached and len(stock) > 5
    assert not any(b"oneflow" in content.lower() for content in attached.values())
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "attached")
    loaded.set_progress_bar_config(disable=True)
    assert not OneFlowBackend.is_attached(loaded) and "_compiled_call_impl" not in vars(loaded.unet)
    assert np.array_equal(draw(loaded, **SD), expected)
    loaded.to(backend="oneflow")
    assert np.abs(draw(loaded, **SD) - expected).max() <= 1
    # One model alone, saved over itself with changed weights.
    both.each(lambda pipe: pipe.unet.conv_in.weight.data.mul_(2))
    for name, pipe in (("stock", both.stock), ("attached", both.attached)):
        pipe.unet.save_pretrained(tmp_path / name / "unet")
    assert contents(tmp_path / "stock") == contents(tmp_path / "attached")


def test_pipelines_that_share_models_share_graphs():
    both = pair(only=None)
    both.draw()
    others = both.each(StableDiffusionImg2ImgPipeline.from_pipe)
    for other in others:
        other.set_progress_bar_config(disable=True)
    arguments = {"prompt": SD["prompt"], "image": picture(16), "strength": 1.0}
    images = [draw(other, **arguments) for other in others]
    assert np.abs(images[0] - images[1]).max() <= 1
    assert both.built() == 1 and both.calls() == 4 and both.built("vae.encoder") == 1
    # One of them leaves the backend: so do the models that they share.
    others[1].to(backend="torch")
    assert not OneFlowBackend.is_attached(both.attached)
    assert np.array_equal(draw(both.attached, **SD), draw(both.stock, **SD))


def test_a_pipeline_around_an_attached_model():
    both = pair()
    expected = both.draw()
    other = StableDiffusionPipeline(**both.attached.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    assert other.unet is both.attached.unet and OneFlowBackend.is_attached(other)
    assert np.abs(draw(other, **SD) - expected).max() <= 1 and both.calls() == 4
    # A model that joins an attached pipeline runs in torch until the pipeline is attached again.
    both.each(lambda pipe: pipe.register_modules(unet=stable_diffusion().unet.eval()))
    both.draw()
    assert dispatcher_of(both.attached.unet) is None
    OneFlowBackend.attach(both.attached)
    both.draw()
    assert both.built() == 1


def test_copies():
    both = pair()
    expected = both.draw()
    other = copy.deepcopy(both.attached)
    other.unet.conv_in.weight.data.mul_(1.5)
    stock = copy.deepcopy(both.stock)
    stock.unet.conv_in.weight.data.mul_(1.5)
    assert np.abs(draw(other, **SD) - draw(stock, **SD)).max() <= 1
    assert dispatcher_of(other.unet).record.built == 1 and not dispatcher_of(other.unet).record.fallbacks
    assert np.array_equal(both.draw(), expected) and both.built() == 1


def test_pickles():
    both = pair()
    both.draw()
    loaded = pickle.loads(pickle.dumps(both.attached))
    assert not OneFlowBackend.is_attached(loaded)
    assert np.array_equal(draw(loaded, **SD), draw(both.stock, **SD))
    stock, attached = (pickle.dumps(pipe.unet.state_dict()) for pipe in (both.stock, both.attached))
    assert len(stock) == len(attached)
