"""Run by test_mock.py with torch and under mock torch: what a script saves, overrides and asks for. Prints what it found."""

import io
import os
import sys

import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

torch.manual_seed(3)
torch.cuda.manual_seed(3)
torch.cuda.manual_seed_all(3)


class Clamped(DDIMScheduler):
    steps = 0

    def set_timesteps(self, *args, **options):
        super().set_timesteps(*args, **options)
        self.timesteps = self.timesteps * torch.ones_like(self.timesteps)

    @property
    def init_noise_sigma(self):
        return torch.ones(1)[0]

    @init_noise_sigma.setter
    def init_noise_sigma(self, value):
        pass

    def step(self, model_output, timestep, sample, **options):
        self.steps += 1
        return super().step(torch.clamp(model_output, -0.5, 0.5), timestep, sample, **options)


pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
pipe.scheduler = Clamped.from_config(pipe.scheduler.config)
generator = torch.Generator().manual_seed(1)
image = pipe("a red circle", num_inference_steps=3, generator=generator, output_type="np").images
print("image", pipe.scheduler.steps, [round(float(v), 3) for v in image[0, ::7, 0, 0]])

torch.save({"a": torch.ones(2), "b": [1, "x"]}, "x.pt")
read = torch.load("x.pt", weights_only=True)
print("file", os.path.isfile("x.pt"), isinstance(read["a"], torch.Tensor), read["a"].tolist(), read["b"])
buffer = io.BytesIO()
torch.save(torch.arange(3), buffer)
buffer.seek(0)
print("buffer", torch.load(buffer, map_location="cpu").tolist())
save_file({"w": torch.ones(2, 2)}, "w.safetensors")
print("safetensors", isinstance(load_file("w.safetensors")["w"], torch.Tensor))

torch.manual_seed(0)
config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=32)
made = (
    transformers.GPT2LMHeadModel(config)
    .eval()
    .generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
)
print("generated", isinstance(made, torch.Tensor), tuple(made.shape))

if not torch.cuda.is_available():
    ways = {
        "ones": lambda: torch.ones(1, device="cuda"),
        "cuda": lambda: torch.ones(1).cuda(),
        "to": lambda: torch.ones(1).to("cuda:0"),
        "name": lambda: torch.cuda.get_device_name(),
        "like": lambda: torch.zeros_like(torch.ones(1), device="cuda"),
        "layer": lambda: torch.nn.Linear(2, 2).to("cuda"),
    }
    for name, way in ways.items():
        try:
            way()
            print(name, "made")
        except (RuntimeError, AssertionError):
            print(name, "refused")
