"""Draw scenes: anti-aliased flat shapes from signed distances, in batches on any device."""

from __future__ import annotations

import torch

from .scenes import IMAGE_SIZE, PALETTE, SHAPES, Scenes


def _star(x: torch.Tensor, y: torch.Tensor, outer: float, depth: float) -> torch.Tensor:
    """Signed distance of a five-pointed star, point up, folded to one half of one arm."""
    kx, ky = 0.809016994375, -0.587785252292
    x, y = x.abs(), -y
    fold = 2 * (kx * x + ky * y).clamp(min=0)
    x, y = x - fold * kx, y - fold * ky
    fold = 2 * (-kx * x + ky * y).clamp(min=0)
    x, y = x + fold * kx, y - fold * ky
    x, y = x.abs(), y - outer
    bx, by = -depth * ky, depth * kx - 1
    along = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0, outer)
    return torch.hypot(x - bx * along, y - by * along) * torch.sign(y * bx - x * by)


def _heart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance of a heart, tip down, about two units wide and high."""
    scale = 0.6
    x, y = x.abs() * scale, 0.56 - y * scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - 2**0.5 / 4
    half = 0.5 * (x + y).clamp(min=0)
    side = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - half, y - half))
    return torch.where(x + y > 1, lobe, side * torch.sign(x - y)) / scale


def distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the signed distance, negative inside, of a shape of radius one.

    x and y are float tensors of one shape: offsets from the centre, y downwards.

    Raises:
        ValueError: the shape is unknown.
    """
    ax, ay = x.abs(), y.abs()
    if shape == "circle":
        return torch.hypot(x, y) - 1
    if shape == "square":
        return torch.maximum(ax, ay) - 0.88
    if shape == "diamond":
        return (ax + ay - 1.08) / 2**0.5
    if shape == "triangle":
        return torch.maximum(y - 0.8, (1.8 * ax - (y + 1)) / (1.8**2 + 1) ** 0.5)
    if shape == "cross":
        return torch.minimum(torch.maximum(ax - 0.34, ay - 1), torch.maximum(ax - 1, ay - 0.34))
    if shape == "ring":
        return (torch.hypot(x, y) - 0.76).abs() - 0.24
    if shape == "star":
        return _star(x, y, 1.1, 0.45)
    if shape == "heart":
        return _heart(x, y)
    raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")


def render(scenes: Scenes) -> torch.Tensor:
    """Draw a batch of scenes.

    Returns float32 [B, 3, IMAGE_SIZE, IMAGE_SIZE] in [-1, 1] on the scenes' device.
    """
    device = scenes.count.device
    palette = torch.tensor(list(PALETTE.values()), device=device, dtype=torch.float32)
    palette = palette / 127.5 - 1
    middle = torch.arange(IMAGE_SIZE, device=device) + 0.5
    image = palette[scenes.background][:, :, None, None]
    for k in range(scenes.colour.shape[1]):
        radius = scenes.radius[:, k, None, None]
        x = (middle[None, None, :] - scenes.centre[:, k, 0, None, None]) / radius
        y = (middle[None, :, None] - scenes.centre[:, k, 1, None, None]) / radius
        x, y = torch.broadcast_tensors(x, y)
        which = scenes.shape[:, k, None, None]
        far = distance(SHAPES[0], x, y)
        for i, name in enumerate(SHAPES[1:], 1):
            far = torch.where(which == i, distance(name, x, y), far)
        cover = (0.5 - far * radius).clamp(0, 1)
        cover = (cover * (scenes.count > k)[:, None, None])[:, None]
        image = image + cover * (palette[scenes.colour[:, k]][:, :, None, None] - image)
    return image
