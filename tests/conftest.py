"""Small modules and pipelines for all tests; OneFlow is real everywhere."""

import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests of the cache name their own folder.
os.environ["DIFFUSERS_ONEFLOW_CACHE"] = "off"

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import diffusers_oneflow

# How long something takes says nothing about a test: a busy machine took 31 seconds to draw a first tensor on its GPU.
slow = [HealthCheck.too_slow]
# Hypothesis would take numbers from the source of all modules that are loaded: other examples when tests run in another order,
# or when code changes, while the conformance suite compares what its ops gave with a baseline. (The function is private.)
providers._get_local_constants = providers.Constants
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, suppress_health_check=slow)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _backend_as_before():
    """What computes attention is set for the whole process."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def settled(monkeypatch):
    """Tests of the cache may run seconds after somebody has changed this package."""
    monkeypatch.setattr("diffusers_oneflow.libraries.STARTED", time.time() + 1e6)


@pytest.fixture
def block() -> torch.nn.Module:
    """A small image block: (n, 3, h, w) -> (n, 3, h, w)."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1)
    ).eval()


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(diffusers_oneflow.demo_model(), subfolder="tokenizer")


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture
def pipe(tokenizer) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline with tiny random models and the demo model's tokenizer; 16x16 pixels."""
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()  # fmt: skip
    made = StableDiffusionPipeline(
        vae=tiny_vae(), text_encoder=text, tokenizer=tokenizer, unet=tiny_unet(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def draw():
    """draw(pipe, **arguments): a seeded image of two steps as an array (h, w, 3) in 0..1."""

    def run(pipe, prompt="a red circle", seed=0, **arguments):
        generator = torch.Generator().manual_seed(seed)
        return pipe(prompt, generator=generator, num_inference_steps=2, output_type="np", **arguments).images[0]

    return run


@pytest.fixture
def demo_pipe() -> StableDiffusionPipeline:
    """The embedded demo pipeline on torch, without its progress bar."""
    made = StableDiffusionPipeline.from_pretrained(diffusers_oneflow.demo_model())
    made.set_progress_bar_config(disable=True)
    return made
