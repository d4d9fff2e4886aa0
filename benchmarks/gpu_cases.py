"""The models that are measured on a GPU, at full size and tiny, with random weights made there, and one call of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from . import models


@dataclass(frozen=True)
class Case:
    """A model and one call of it.

    Attributes:
        make: the module, called with whether it is to be tiny; its weights come where and as torch makes them by default.
        inputs: the keyword arguments of a call, on the CPU in float32: called with (module, tiny, batch).
        batch: of the call, where one is asked for.
        dtype: in which it is measured where none is asked for.
        method: what is called of the module: "" for itself.
    """

    make: Callable[[bool], nn.Module]
    inputs: Callable[[nn.Module, bool, int], dict[str, Any]]
    batch: int = 2
    dtype: str = "float16"
    method: str = ""

    def call(self, module: nn.Module) -> Callable[..., Any]:
        """What is called: the module, or its method."""
        return getattr(module, self.method) if self.method else module


def _config(module: nn.Module) -> Any:
    """What a model of diffusers or transformers says of itself."""
    return module.config


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _unet_inputs(module: nn.Module, tiny: bool, batch: int) -> dict[str, Any]:
    size, text = _config(module).sample_size, (8 if tiny else 77)
    return {
        "sample": _normal(batch, _config(module).in_channels, size, size),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": _normal(batch, text, _config(module).cross_attention_dim),
        "return_dict": False,
    }


def _sdxl(tiny: bool) -> UNet2DConditionModel:
    if tiny:
        return UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
            attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
        )  # fmt: skip
    return UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=6 * 256 + 1280,
    )  # fmt: skip


def _sdxl_inputs(module: nn.Module, tiny: bool, batch: int) -> dict[str, Any]:
    size = 8.0 * _config(module).sample_size
    ids = torch.tensor([[size, size, 0.0, 0.0, size, size]]).repeat(batch, 1)
    pooled = _normal(batch, 16 if tiny else 1280)
    return {**_unet_inputs(module, tiny, batch), "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}


def _sd3(tiny: bool) -> SD3Transformer2DModel:
    if tiny:
        return SD3Transformer2DModel(
            sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
            caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8,
        )  # fmt: skip
    return SD3Transformer2DModel(
        sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
        caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
    )  # fmt: skip


def _sd3_inputs(module: nn.Module, tiny: bool, batch: int) -> dict[str, Any]:
    config = _config(module)
    return {
        "hidden_states": _normal(batch, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": _normal(batch, 6 if tiny else 333, config.joint_attention_dim),
        "pooled_projections": _normal(batch, config.pooled_projection_dim),
        "return_dict": False,
    }


def _flux(tiny: bool) -> FluxTransformer2DModel:
    if tiny:
        return FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
    return FluxTransformer2DModel(guidance_embeds=True)


def _flux_inputs(module: nn.Module, tiny: bool, batch: int) -> dict[str, Any]:
    side, text = (4, 6) if tiny else (64, 512)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    return {
        "hidden_states": _normal(batch, side * side, _config(module).in_channels),
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 3.5),
        "encoder_hidden_states": _normal(batch, text, _config(module).joint_attention_dim),
        "pooled_projections": _normal(batch, _config(module).pooled_projection_dim),
        "txt_ids": torch.zeros(text, 3),
        "img_ids": places,
        "return_dict": False,
    }


def _vae(tiny: bool) -> AutoencoderKL:
    if tiny:
        return AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
    return models.sd15_vae()


def _latents(side: int) -> Callable[[nn.Module, bool, int], dict[str, Any]]:
    def inputs(module: nn.Module, tiny: bool, batch: int) -> dict[str, Any]:
        size = side // 8 if tiny else side
        return {"z": _normal(batch, _config(module).latent_channels, size, size), "return_dict": False}

    return inputs


def _text(tiny: bool) -> CLIPTextModel:
    if tiny:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=100, max_position_embeddings=8, hidden_act="quick_gelu"))
    return models.sd15_text_encoder()


def _text_inputs(module: nn.Module, tiny: bool, batch: int) -> dict[str, Any]:
    config, generator = _config(module), torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (batch, config.max_position_embeddings), generator=generator)
    return {"input_ids": ids, "attention_mask": None}


CASES = {
    "sd15-unet": Case(lambda tiny: models.tiny_unet() if tiny else models.sd15_unet(), _unet_inputs),
    "sdxl-unet": Case(_sdxl, _sdxl_inputs),
    "sd3-transformer": Case(_sd3, _sd3_inputs),
    "flux-transformer": Case(_flux, _flux_inputs, batch=1, dtype="bfloat16"),
    "vae-512": Case(_vae, _latents(64), batch=1, method="decode"),
    "vae-1024": Case(_vae, _latents(128), batch=1, method="decode"),
    "text-encoder": Case(_text, _text_inputs, batch=1),
}


def create(case: Case, device: torch.device | str, dtype: torch.dtype, tiny: bool = False, seed: int = 0) -> nn.Module:
    """The case's module with random weights, made on `device` in `dtype`: 12 billion would not fit in float32 first.

    Filters of convolutions are channels last, the layout that is fastest for all; so nobody moves them while others read them.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(seed)
        with torch.device(device):
            module = case.make(tiny).eval()
    finally:
        torch.set_default_dtype(before)
    module = module.to(device, dtype)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's types lack it


def inputs(
    case: Case, module: nn.Module, tiny: bool, times: int, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Any]:
    """The keyword arguments of one call, `times` its usual batch."""
    given: dict[str, Any] = cast(case.inputs(module, tiny, times * case.batch), device, dtype)
    return given


def cast(value: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Tensors of nested dictionaries on `device`, floating-point ones in `dtype`."""
    if isinstance(value, dict):
        return {name: cast(item, device, dtype) for name, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


def flops(name: str, tiny: bool = False, times: int = 1) -> dict[str, int]:
    """Multiplications and additions of one call by op of ATen, attention as the products that it is made of."""
    case = CASES[name]
    module = create(case, "meta", torch.float32, tiny)
    given = inputs(case, module, tiny, times, "meta", torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.call(module)(**given)
    return {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
