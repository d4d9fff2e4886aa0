"""`diffusers_oneflow.compile` on models from outside diffusers; the table in docs/moving.md of what was tried comes from here."""

import copy

import pytest
import torch
import transformers

import diffusers_oneflow
from diffusers_oneflow import OneFlowConfig
from diffusers_oneflow.backend import dispatcher_of, models

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
PATCHES = {**{k: v for k, v in SMALL.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}
TINY = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 99}
NARROW = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 99}


def words(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """(batch, length) int64."""
    return torch.randint(2, 99, (batch, length), generator=torch.Generator().manual_seed(seed))


def mask(batch: int = 2, length: int = 9) -> torch.Tensor:
    """(batch, length) int64: the last three words of the second row are padding."""
    made = torch.ones(batch, length, dtype=torch.int64)
    made[1, -3:] = 0
    return made


def image(size: int = 32, seed: int = 0) -> torch.Tensor:
    """(2, 3, size, size) float32."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def clip() -> transformers.CLIPModel:
    config = transformers.CLIPConfig(
        text_config={**SMALL, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}, vision_config=PATCHES, projection_dim=16
    )
    return transformers.CLIPModel(config)


def llama() -> transformers.LlamaForCausalLM:
    """A decoder: causal attention with fewer heads for keys, rotary embeddings, RMS norms, gated SiLU."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False))


def gpt2() -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=99, use_cache=False, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def t5() -> transformers.T5ForConditionalGeneration:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**NARROW, decoder_start_token_id=0, use_cache=False, feed_forward_proj="gated-gelu")
    )


class Bottleneck(torch.nn.Module):
    """The block of a ResNet-50: 1x1, 3x3, 1x1 convolutions around a residual."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        nn, out = torch.nn, 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(torch.nn.Module):
    """After torchvision's: a stem with max pooling, stages of bottlenecks, mean over the image, a linear head."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(Bottleneck(16, 8, 1), Bottleneck(32, 8, 1), Bottleneck(32, 16, 2), Bottleneck(64, 32, 2))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.running_mean)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)))


class ViT(torch.nn.Module):
    """After torchvision's: patches by a convolution, a class token, torch's own encoder layers."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.places = nn.Parameter(torch.randn(1, 17, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, torch.nn.functional.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 10))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.encoder(x)[:, 0])


MODELS = {
    "CLIPModel": (clip, lambda s: {"input_ids": words(seed=s), "pixel_values": image(seed=s), "attention_mask": mask()}),
    "T5ForConditionalGeneration": (
        t5, lambda s: {"input_ids": words(seed=s), "attention_mask": mask(), "decoder_input_ids": words(2, 5, s)},
    ),
    "BertModel": (lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
                  lambda s: {"input_ids": words(seed=s), "attention_mask": mask()}),
    "RobertaForMaskedLM": (lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL)),
                           lambda s: {"input_ids": words(seed=s), "attention_mask": mask()}),
    "DistilBertModel": (
        lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**TINY)),
        lambda s: {"input_ids": words(seed=s), "attention_mask": mask()},
    ),
    "LlamaForCausalLM": (llama, lambda s: {"input_ids": words(seed=s)}),
    "GPT2LMHeadModel": (gpt2, lambda s: {"input_ids": words(seed=s)}),
    "ViTModel": (lambda: transformers.ViTModel(transformers.ViTConfig(**PATCHES)), lambda s: {"pixel_values": image(seed=s)}),
    "Dinov2Model": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**PATCHES)),
                    lambda s: {"pixel_values": image(seed=s)}),
    "ResNet": (ResNet, lambda s: {"x": image(64, s)}),
    "ViT": (ViT, lambda s: {"x": image(32, s)}),
}  # fmt: skip


def tensors(value) -> list[torch.Tensor]:
    """All tensors of an output."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_outside_diffusers(name):
    """No farther from a float64 run than the parity bar allows; type and parts of the output are the model's own."""
    make, inputs = MODELS[name]
    model = make().eval()
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        expected = [model(**inputs(s)) for s in (0, 1)]
        precise = [exact(**{k: v.double() if v.is_floating_point() else v for k, v in inputs(s).items()}) for s in (0, 1)]
        assert diffusers_oneflow.compile(model, OneFlowConfig(fallback="error")) is model
        results = [model(**inputs(s)) for s in (0, 1)]
    for result, plain, truth in zip(results, expected, precise):
        assert type(result) is type(plain)
        for mine, theirs, true in zip(tensors(result), tensors(plain), tensors(truth), strict=True):
            error = (mine.double() - true).norm() / true.norm()
            assert error <= max(1.5 * (theirs.double() - true).norm() / true.norm(), 1e-6), error
    (part,) = models(model).values()
    assert dispatcher_of(part).record.built == 1
    diffusers_oneflow.detach(model)
    with torch.no_grad():
        assert all(map(torch.equal, tensors(model(**inputs(0))), tensors(expected[0])))
