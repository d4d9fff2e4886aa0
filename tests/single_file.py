"""Writes a Stable Diffusion pipeline as one file, under the names of the original release, as checkpoints are passed around."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
# In this order, on the whole name.
_VAE = {
    r"down_blocks\.(\d+)\.resnets\.(\d+)": r"down.\1.block.\2", r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d+)\.resnets\.(\d+)": r"up.\1.block.\2", r"up_blocks\.(\d+)\.upsamplers\.0": r"up.\1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1", r"mid_block\.resnets\.1": "mid.block_2", r"mid_block\.attentions\.0": "mid.attn_1",
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "group_norm": "norm", r"to_([qkv])\.": r"\1.",
    r"to_out\.0": "proj_out",
}  # fmt: skip


def save(pipe, file: Path):
    """Write the weights of `pipe`'s UNet, VAE and text encoder to `file`, a .safetensors."""
    weights = {}
    for name, tensor in pipe.unet.state_dict().items():
        weights[f"model.diffusion_model.{_of_unet(name, pipe.unet)}"] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        # The original's attention is made of convolutions.
        wide = "attentions" in name and tensor.ndim == 2
        weights[f"first_stage_model.{_of_vae(name, pipe.vae)}"] = tensor[:, :, None, None] if wide else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}, file)


def _of_unet(name: str, unet) -> str:
    for ours, theirs in _OUTER.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    side, block, kind, place, rest = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name).groups()
    block, place = int(block or 0), int(place)
    if kind == "resnets":
        part, rest = rest.split(".", 1)
        rest = f"{_RESNET[part]}.{rest}"
    if side == "mid":
        return f"middle_block.{2 * place if kind == 'resnets' else 1}.{rest}"
    group = unet.config.layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * group}.0.{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        after = 2 if hasattr(unet.up_blocks[block], "attentions") else 1
        return f"output_blocks.{(block + 1) * group - 1}.{after}.{rest}"
    number = block * group + place + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{0 if kind == 'resnets' else 1}.{rest}"


def _of_vae(name: str, vae) -> str:
    last = len(vae.config.up_block_types) - 1
    # The original counts the decoder's blocks from the image on.
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{last - int(m[1])}", name)
    for ours, theirs in _VAE.items():
        name = re.sub(ours, theirs, name)
    return name
