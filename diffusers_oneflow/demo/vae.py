"""First stage of the training: the autoencoder between images and latents."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from .model import LATENT_CHANNELS, VAE_CONFIG, fold_latents
from .render import render
from .scenes import COLOURS, IMAGE_SIZE, SHAPES, Scenes, is_unseen, sample

KL_WEIGHT = 1e-4
PEAK_RATE = 1.2e-3
AHEAD = 32  # steps whose images are drawn at once


def learning_rate(peak: float, step: int, progress: float, warm_up: int = 100) -> float:
    """Return the rate at `progress` (0 to 1) of the time: warm-up, then a cosine to zero."""
    return peak * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * progress))


def crowd(n: int, generator: torch.Generator) -> Scenes:
    """Draw n images full of small objects, up to nine each, on the generator's device.

    Small silhouettes are what the autoencoder finds hardest, and a scene holds few.
    No pair is one of HELD_OUT_PAIRS.
    """
    device, k = generator.device, 9

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, (n, *shape), generator=generator, device=device)

    def real(*shape: int) -> torch.Tensor:
        return torch.rand((n, *shape), generator=generator, device=device)

    cell = torch.arange(3, device=device) * 40.0 + 24.0
    grid = torch.stack(torch.meshgrid(cell, cell, indexing="xy"), -1).reshape(1, k, 2)
    background = whole(len(COLOURS))
    scenes = Scenes(
        count=torch.full((n,), k, device=device),
        colour=whole(len(COLOURS), k),
        shape=whole(len(SHAPES), k),
        size=torch.zeros((n, k), dtype=torch.long, device=device),
        radius=11.0 + 4.5 * real(k),
        centre=grid + 10 * (real(k, 2) - 0.5),
        background=background,
        axis=torch.zeros_like(background),
    )
    absent = is_unseen(scenes) | (scenes.colour == background[:, None])
    scenes.centre[absent] = -10.0 * IMAGE_SIZE
    return scenes


@torch.no_grad()
def fresh_images(n: int, generator: torch.Generator) -> torch.Tensor:
    """Return n images, every other one a crowd: float32 [n, 3, 128, 128] in [-1, 1]."""
    images = torch.stack([render(sample(n // 2, generator)), render(crowd(n // 2, generator))], dim=1)
    return images.flatten(0, 1).contiguous(memory_format=torch.channels_last)


class Autoencoder(torch.nn.Module):
    """One training pass, as one module so that it compiles as one graph."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the images decoded from a sample of the posterior, its mean and log variance.

        images [B, 3, 128, 128] in [-1, 1]; noise [B, 4, 16, 16], standard normal.
        """
        moments = self.vae.quant_conv(self.vae.encoder(images)).float()
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        latents = mean + noise * (0.5 * logvar).exp()
        return self.vae.decoder(self.vae.post_quant_conv(latents)), mean, logvar


def reconstruction_loss(output: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return L1 and squared error of the pixels plus L1 of their differences (edges)."""
    off = output.float() - images
    edges = (off[..., 1:] - off[..., :-1]).abs().mean()
    edges = edges + (off[..., 1:, :] - off[..., :-1, :]).abs().mean()
    return off.abs().mean() + off.square().mean() + edges


def train_vae(
    vae: Any,
    generator: torch.Generator,
    seconds: float,
    batch: int,
    compiled: bool,
) -> dict[str, float]:
    """Train the VAE in place for `seconds` of wall time; then whiten its latents.

    `batch` is even.
    The VAE and the generator are on one device.  Returns measured numbers: steps,
    mean absolute error (of the range -1 to 1), posterior spread, seconds.
    """
    device = generator.device
    vae.to(device=device, memory_format=torch.channels_last).train()
    forward: Any = Autoencoder(vae)
    if compiled:
        forward = torch.compile(forward, dynamic=False)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4,
        fused=device.type == "cuda",
    )  # fmt: skip
    side = VAE_CONFIG["sample_size"] // 8
    start, step, first = time.monotonic(), 0, 0.0
    while (elapsed := time.monotonic() - start) < seconds:
        first = elapsed if step == 1 else first  # the first step includes the compilation
        progress = (elapsed - first) / max(seconds - first, 1e-9)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK_RATE, step, progress)
        if step % AHEAD == 0:
            stock = fresh_images(AHEAD * batch, generator)
        images = stock[step % AHEAD * batch :][:batch]
        shape = (batch, LATENT_CHANNELS, side, side)
        noise = torch.randn(shape, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output, mean, logvar = forward(images, noise)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(output, images) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 400 == 0 or step == 1:
            error = (output.float() - images).abs().mean().item()
            spread = (0.5 * logvar).exp().mean().item()
            print(
                f"vae {step:6d} {elapsed:6.1f} s loss {loss.item():.5f} l1 {error:.5f} "
                f"kl {kl.item():.3f} posterior std {spread:.4f}",
                flush=True,
            )
        step += 1
    vae.eval()
    numbers = measure_vae(vae, generator, batch)
    return {"steps": step, "seconds": time.monotonic() - start, **numbers}


@torch.no_grad()
def measure_vae(vae: Any, generator: torch.Generator, batch: int) -> dict[str, float]:
    """Whiten the latents of the VAE in place and return its errors on fresh scenes.

    Errors are of the float32 model on images in [-1, 1]: `l1`, and `worst`, the mean
    over images of the largest error that 99.5 % of an image's pixels stay under.
    """
    latents, errors, worst = [], [], []
    for _ in range(8):
        images = render(sample(batch, generator))
        mean = vae.encode(images).latent_dist.mode()
        error = (vae.decode(mean).sample.clamp(-1, 1) - images).abs()
        latents.append(mean)
        errors.append(error.mean())
        worst.append(error.amax(1).flatten(1)[:, ::2].quantile(0.995, dim=1).mean())
    std, mean = torch.std_mean(torch.cat(latents), dim=(0, 2, 3))
    posterior = vae.encode(images).latent_dist.std.mean(dim=(0, 2, 3)) / std
    fold_latents(vae, mean, std)
    return {
        "l1": torch.stack(errors).mean().item(),
        "worst": torch.stack(worst).mean().item(),
        "posterior_std": posterior.mean().item(),
    }
