"""Second stage of the training: the text encoder and the UNet on the VAE's latents."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .captions import caption_ids, caption_words
from .model import LATENT_STD, Parts, build_scheduler
from .render import render
from .scenes import Scenes, sample
from .tokenizer import END, MAX_LENGTH, START, build_vocabulary, word_table
from .vae import learning_rate

PEAK_RATE = 8e-4
EMPTY_SHARE = 0.1  # of the captions, so that guidance has something to guide away from
EMA_DECAY = 0.999
AHEAD = 8  # steps whose scenes and captions are made at once: that is many small kernels
REUSE = 4  # steps that a scene is used in, on average


class LatentPool:
    """Scenes and their latents; a ring that is filled anew while it is drawn from.

    Encoding a scene costs about as much as a training step on it, so each one is
    used a few times, with another caption, another timestep and other noise.
    """

    def __init__(self, vae: Any, generator: torch.Generator, capacity: int, chunk: int) -> None:
        self.vae, self.generator, self.chunk = vae, generator, chunk
        self.capacity = capacity // chunk * chunk
        self.filled, self.next = 0, 0
        self.scenes: Any = None
        self.latents: Any = None

    @torch.no_grad()
    def add(self) -> None:
        """Draw and encode `chunk` more scenes, over the oldest ones once the pool is full."""
        device = self.generator.device
        scenes = sample(self.chunk, self.generator)
        images = render(scenes).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = self.vae.encoder(images)
        mean = self.vae.quant_conv(features.float()).chunk(2, dim=1)[0] / LATENT_STD
        if self.latents is None:
            dtype = torch.float16 if device.type == "cuda" else torch.float32
            shape = (self.capacity, *mean.shape[1:])
            self.latents = torch.empty(shape, dtype=dtype, device=device)
            index = torch.zeros(self.capacity, dtype=torch.long, device=device)
            self.scenes = scenes[index]
        self.latents[self.next : self.next + self.chunk] = mean.to(self.latents.dtype)
        self.scenes.write(self.next, scenes)
        self.filled = max(self.filled, self.next + self.chunk)
        self.next = (self.next + self.chunk) % self.capacity

    def take(self, n: int) -> tuple[Scenes, torch.Tensor]:
        """Return n scenes at random and their latents, float32 [n, 4, 16, 16], unit spread."""
        device = self.generator.device
        index = torch.randint(self.filled, (n,), generator=self.generator, device=device)
        return self.scenes[index], self.latents[index].float()


class Ema:
    """A running average of parameters, in float32."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self.live: list[torch.Tensor] = list(parameters)
        self.mean = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live parameters; faster in the first steps."""
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.mean, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the live parameters, in place."""
        for mean, live in zip(self.mean, self.live):
            keep = live.clone()
            live.copy_(mean)
            mean.copy_(keep)


def train_diffusion(
    parts: Parts,
    generator: torch.Generator,
    seconds: float,
    batch: int,
    pool_size: int,
    compiled: bool,
    save: Callable[[], None],
    save_every: float = 150.0,
    most_steps: int | None = None,
) -> dict[str, float]:
    """Train text encoder and UNet in place for `seconds` of wall time; leave the averages.

    The generator's device is where everything runs.  Training ends after `most_steps`
    if that comes first.  `save` is called with the
    averages in place every `save_every` seconds.  Returns steps, scenes, seconds
    and the mean loss of the last steps.
    """
    device = generator.device
    start, step, loss_mean, saved = time.monotonic(), 0, None, time.monotonic()
    vae, text, unet = parts.vae, parts.text_encoder, parts.unet
    vae.to(device).eval()
    text.to(device).train()
    unet.to(device=device, memory_format=torch.channels_last).train()
    vocabulary = build_vocabulary()[0]
    table = word_table(vocabulary).to(device)
    begin, end = vocabulary[START], vocabulary[END]
    empty = torch.full((MAX_LENGTH,), end, device=device)
    empty[0] = begin
    alphas = build_scheduler().alphas_cumprod.to(device)

    pool = LatentPool(vae, generator, pool_size, chunk=batch)
    while pool.filled < pool.capacity and pool.filled < 32 * batch:
        pool.add()
    forward = torch.compile(unet, dynamic=False) if compiled else unet
    parameters = [*text.parameters(), *unet.parameters()]
    ema = Ema(parameters)
    optimizer = torch.optim.AdamW(
        parameters, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01,
        fused=device.type == "cuda",
    )  # fmt: skip
    print(f"pool of {pool.filled} scenes after {time.monotonic() - start:.1f} s", flush=True)
    first = 0.0
    while (elapsed := time.monotonic() - start) < seconds and step != most_steps:
        first = elapsed if step <= 1 else first  # the first step includes the compilation
        progress = (elapsed - first) / max(seconds - first, 1e-9)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_RATE, step, progress, warm_up=300)
        if step % AHEAD == 0:
            for _ in range(AHEAD // REUSE):
                pool.add()
            scenes, stock = pool.take(AHEAD * batch)
            words = caption_words(scenes, generator)
            stock_ids = caption_ids(words, table, begin, end, MAX_LENGTH)
        with torch.no_grad():
            part = slice(step % AHEAD * batch, (step % AHEAD + 1) * batch)
            latents = stock[part]
            drop = torch.rand(batch, generator=generator, device=device) < EMPTY_SHARE
            ids = torch.where(drop[:, None], empty, stock_ids[part])
            t = torch.randint(len(alphas), (batch,), generator=generator, device=device)
            noise = torch.randn(latents.shape, generator=generator, device=device)
            signal = alphas[t].sqrt()[:, None, None, None]
            spread = (1 - alphas[t]).sqrt()[:, None, None, None]
            noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
            target = signal * noise - spread * latents
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = text(ids)[0]
            output = forward(noisy, t, states, return_dict=False)[0]
        loss = (output.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(step)
        loss_mean = loss.detach() if loss_mean is None else loss_mean.lerp(loss.detach(), 0.02)
        if step % 200 == 0 or step == 1:
            print(f"diffusion {step:6d} {elapsed:6.1f} s loss {loss_mean.item():.5f}", flush=True)
        step += 1
        if time.monotonic() - saved > save_every:
            ema.swap()
            save()
            ema.swap()
            saved = time.monotonic()
    ema.swap()
    text.eval()
    unet.eval()
    return {
        "steps": step,
        "scenes": step * batch,
        "seconds": time.monotonic() - start,
        "loss": float("nan") if loss_mean is None else loss_mean.item(),
    }
