"""The models that are measured: the demo pipeline, and Stable Diffusion 1.5 at full size with random weights."""

import os
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers speaks of packages it does not find while it is imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import diffusers_oneflow

# Every child process loads models: a table must not drown in their progress bars.
for library in (diffusers.utils.logging, transformers.utils.logging):
    library.disable_progress_bar()
    library.set_verbosity_error()

PROMPT = "a small green triangle left of a large red circle on a yellow background"
# Guidance doubles the batch of one image.
BATCH = 2


def demo_pipeline() -> StableDiffusionPipeline:
    """The embedded demo model in float32."""
    return _quiet(StableDiffusionPipeline.from_pretrained(diffusers_oneflow.demo_model(), dtype=torch.float32))


def sd15_unet(seed: int = 0) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet, 860 million random weights."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
    ).eval()


def tiny_unet(seed: int = 0) -> UNet2DConditionModel:
    """A UNet of a few thousand weights, to try a benchmark."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def unet(model: str) -> UNet2DConditionModel:
    """The UNet of `model`: "demo", "sd15" or "tiny"."""
    return {"demo": lambda: demo_pipeline().unet, "sd15": sd15_unet, "tiny": tiny_unet}[model]()


def sd15_vae(seed: int = 0) -> AutoencoderKL:
    """Stable Diffusion 1.5's VAE, random weights."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).eval()


def sd15_text_encoder(seed: int = 0) -> CLIPTextModel:
    """Stable Diffusion 1.5's text encoder (CLIP ViT-L/14), random weights."""
    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
        )
    ).eval()


def sd15_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 with random weights; the tokenizer is the demo model's, its ids fit CLIP's vocabulary."""
    return _quiet(
        StableDiffusionPipeline(
            vae=sd15_vae(seed),
            text_encoder=sd15_text_encoder(seed),
            tokenizer=CLIPTokenizer.from_pretrained(diffusers_oneflow.demo_model(), subfolder="tokenizer", model_max_length=77),
            unet=sd15_unet(seed),
            scheduler=DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def pipeline(model: str) -> StableDiffusionPipeline:
    """The pipeline called `model`: "demo" or "sd15"."""
    return {"demo": demo_pipeline, "sd15": sd15_pipeline}[model]()


def _quiet(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet_inputs(
    module: UNet2DConditionModel, latent: int, tokens: int = 77, batch: int = BATCH, seed: int = 1
) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, Any]]:
    """``(args, kwargs)`` of one step at ``latent x latent``, just as Stable Diffusion's pipeline passes them.

    The same numbers in every dtype, rounded to that of `module`.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, module.config.in_channels, latent, latent, generator=generator).to(module.dtype)
    text = torch.randn(batch, tokens, module.config.cross_attention_dim, generator=generator).to(module.dtype)
    options = {"timestep_cond": None, "cross_attention_kwargs": None, "added_cond_kwargs": None, "return_dict": False}
    return (sample, torch.tensor(500)), {"encoder_hidden_states": text, **options}


def image(pipe: StableDiffusionPipeline, steps: int, seed: int = 0, size: int | None = None) -> NDArray[Any]:
    """One seeded image of `PROMPT` as a float array (height, width, 3) in 0..1; `size` in pixels."""
    # Drawn here: the pipeline would draw other numbers in another dtype.
    latent = size // pipe.vae_scale_factor if size else pipe.unet.config.sample_size
    shape = 1, pipe.unet.config.in_channels, latent, latent
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(pipe.unet.dtype)
    made = pipe(
        PROMPT,
        num_inference_steps=steps,
        height=size,
        width=size,
        latents=noise,
        output_type="np",
    )
    drawn: NDArray[Any] = made.images[0]
    return drawn


def cases(pipe: StableDiffusionPipeline, latent: int, steps: int) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed: name -> a call that returns its result; all run under ``torch.no_grad()``."""
    tokens = pipe.tokenizer.model_max_length
    args, kwargs = unet_inputs(pipe.unet, latent, tokens)
    ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids
    latents = torch.randn(1, pipe.vae.config.latent_channels, latent, latent, generator=torch.Generator().manual_seed(2))
    latents = latents.to(pipe.vae.dtype)
    size = latent * pipe.vae_scale_factor
    found = {
        "unet step": lambda: pipe.unet(*args, **kwargs)[0],
        "text encoder": lambda: pipe.text_encoder(ids, attention_mask=None)[0],
        "vae decode": lambda: pipe.vae.decode(latents, return_dict=False)[0],
        f"pipeline, {steps} steps": lambda: torch.from_numpy(image(pipe, steps, size=size)),
    }
    return {name: torch.no_grad()(call) for name, call in found.items()}
