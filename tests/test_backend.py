"""Attaching and detaching modules and pipelines."""

import copy

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig
from diffusers_oneflow.backend import OneFlowBackend, dispatcher_of, models


def test_models_go_in_place_and_vaes_by_their_halves(pipe):
    assert set(models(pipe)) == {"vae.encoder", "vae.decoder", "text_encoder", "unet"}
    unet = pipe.unet
    pipe.to(backend="oneflow")
    assert pipe.unet is unet and dispatcher_of(pipe.vae) is None and dispatcher_of(pipe.vae.decoder) is not None


def test_save_pretrained_of_an_attached_pipeline(pipe, draw, tmp_path):
    pipe.to(backend="oneflow")
    draw(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    assert not OneFlowBackend.is_attached(loaded)
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(weight, loaded.unet.state_dict()[name])


def test_a_deepcopy_of_a_pipeline_stays_attached(pipe, draw):
    pipe.to(backend="oneflow")
    expected = draw(pipe)
    other = copy.deepcopy(pipe)
    assert dispatcher_of(other.unet) is not dispatcher_of(pipe.unet)
    assert abs(draw(other) - expected).max() <= 1 / 255
    assert dispatcher_of(other.unet).record.built == 1
    other.to(backend="torch")
    assert OneFlowBackend.is_attached(pipe)


def test_pipelines_that_share_models_share_graphs(pipe, draw):
    pipe.to(backend="oneflow")
    draw(pipe)
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert other.unet is pipe.unet and OneFlowBackend.is_attached(other)


def test_torch_compile_on_an_attached_module_raises(block):
    diffusers_oneflow.compile(block)
    with pytest.raises(RuntimeError, match="runs on OneFlow and cannot be compiled"):
        block.compile()
    diffusers_oneflow.detach(block)
    block.compile(backend="eager")
    assert block._compiled_call_impl is not None


def test_detach_gives_back_what_was_there(block):
    block.compile(backend="eager")
    before = block._compiled_call_impl
    diffusers_oneflow.compile(block)
    assert block._compiled_call_impl is not before
    diffusers_oneflow.detach(block)
    assert block._compiled_call_impl is before


def test_attaching_twice_takes_the_new_options(block):
    diffusers_oneflow.compile(block)
    first = dispatcher_of(block)
    diffusers_oneflow.compile(block, OneFlowConfig(fallback="error"))
    assert dispatcher_of(block) is not first and dispatcher_of(block).config.fallback == "error"
    diffusers_oneflow.detach(block)
    assert block._compiled_call_impl is None


def test_moving_a_pipeline_does_not_leave_the_backend(pipe, draw):
    expected = draw(pipe)
    pipe.to(backend="oneflow")
    draw(pipe)
    pipe.to("cpu")
    pipe.maybe_free_model_hooks()
    assert OneFlowBackend.is_attached(pipe)
    assert abs(draw(pipe) - expected).max() <= 1 / 255
