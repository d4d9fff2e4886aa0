"""What scripts do with accelerate, transformers and diffusers; nothing in it knows whether torch is torch or OneFlow.

Run by `test_mock`, once on each, in a folder with the models `tiny` and `model.safetensors`; argument: the file of its numbers.
"""

import sys

import numpy
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from diffusers import StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

made = {}


def keep(name, tensor):
    assert isinstance(tensor, torch.Tensor) and not tensor.requires_grad, name
    made[name] = tensor.cpu().numpy()


accelerator = Accelerator(cpu=True)
device = accelerator.device
assert isinstance(device, torch.device) and PartialState().device == device and torch.zeros(1, device=device).device == device
pipe = StableDiffusionPipeline.from_pretrained("tiny", torch_dtype=torch.float32).to(device)
pipe.unet = accelerator.prepare(pipe.unet)
few = {"num_inference_steps": 2, "output_type": "pt"}
keep("gathered", accelerator.gather(torch.ones(2, device=device)))

# Seeds, for all that draws without a generator, in one stream.
for name, seed in (("accelerate", set_seed), ("transformers", transformers.set_seed), ("torch", torch.manual_seed)):
    seed(11)
    keep(f"{name}: tensor", randn_tensor((1, 4, 8, 8), device=device, dtype=torch.float32))
    keep(f"{name}: randn", torch.randn(2, 3, device=device))
    keep(f"{name}: image", pipe("a red circle", **few).images)
    keep(f"{name}: rand", torch.rand(3))
    keep(f"{name}: randint", torch.randint(0, 9, (4,)))
    keep(f"{name}: randn_like", torch.randn_like(torch.zeros(2)))
    state = torch.get_rng_state()
    keep(f"{name}: before", torch.randn(2))
    torch.set_rng_state(state)
    keep(f"{name}: again", torch.randn(2))
    own = []
    for _ in range(2):
        seed(12)
        own.append(torch.empty(3).normal_())
    assert (own[0] == own[1]).all(), name

# Generators.
generators = {
    "name": torch.Generator("cpu"),
    "device": torch.Generator(device),
    "keyword": torch.Generator(device=device),
    "nothing": torch.Generator(),
    "returned": torch.manual_seed(5),
}
for name, generator in generators.items():
    generator.manual_seed(3)
    keep(f"{name}: tensor", randn_tensor((1, 4, 8, 8), generator=generator, device=device, dtype=torch.float32))
    keep(f"{name}: randn", torch.randn((2, 2), generator=generator, device=device))
several = [torch.Generator(device).manual_seed(i) for i in range(2)]
keep("several: tensor", randn_tensor((2, 4, 8, 8), generator=several, device=device))
keep("several: image", pipe("a red circle", num_images_per_prompt=2, generator=several, **few).images)

# Modes.
latents = torch.randn((1, 4, 8, 8), generator=torch.Generator(device).manual_seed(4), device=device)
with torch.no_grad():
    states = pipe.encode_prompt("a red circle", device, 1, False)[0]


def step():
    return pipe.unet(latents, 1, encoder_hidden_states=states).sample


@torch.no_grad()
def called():
    """Its documentation."""
    return step()


@torch.no_grad
def bare():
    return step()


@torch.inference_mode()
def inferred():
    return step()


@torch.inference_mode
def inferred_too():
    return step()


for function in (called, bare, inferred, inferred_too):
    keep(f"{function.__name__}: step", function())
assert called.__doc__ == "Its documentation."
mode = torch.no_grad()
with mode, torch.inference_mode():
    keep("with: step", step())
    assert not torch.is_grad_enabled()
assert torch.is_grad_enabled()
with torch.set_grad_enabled(False):
    keep("set for a while: step", step())
assert torch.is_grad_enabled()
torch.set_grad_enabled(False)
keep("set: step", step())
with torch.enable_grad():
    assert torch.is_grad_enabled()
assert not torch.is_grad_enabled()

# A single file in half precision.
single = StableDiffusionPipeline.from_single_file(
    "model.safetensors", config="tiny", torch_dtype=torch.float16, local_files_only=True
)
assert single.dtype == single.unet.dtype == single.text_encoder.dtype == torch.float16
single.set_progress_bar_config(disable=True)
keep("single: half", single("a red circle", generator=torch.Generator(device).manual_seed(6), **few).images)

numpy.savez(sys.argv[1], **made)
for each in (pipe, single):
    if hasattr(each.unet, "_oneflow_dispatcher"):
        import diffusers_oneflow

        print(diffusers_oneflow.explain(each, show=False).fallbacks)
