"""Dtypes, autocast, training and threads."""

import threading

import numpy as np
import pytest
import torch

from diffusers_oneflow import parity
from diffusers_oneflow.backend import OneFlowBackend

from .pair import SD, Pair, draw, seeded, stable_diffusion, warned


def inputs(dtype=torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(1)
    latents, prompt = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)
    return latents.to(dtype), torch.tensor(7), prompt.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype):
    """Every model on OneFlow, as near to float64 as torch's, and so the image."""
    pipe, images = seeded(stable_diffusion).to(dtype), {}
    # Long ones: of an empty text most rows are one and the same token, too few numbers to judge errors by.
    words = "small blue star on the left of a green square white background video and a black sound of the red circle"
    texts = {"prompt": f"large {words}", "negative_prompt": words[::-1]}

    def drawn(pipe):
        images[OneFlowBackend.is_attached(pipe)] = exact = draw(pipe, **{**SD, **texts}, output_type="pt")
        return exact.mul(255).round().permute(0, 2, 3, 1).byte().numpy()

    report = parity.pipeline(pipe, drawn)
    assert {c.path for c in report.components} == {"unet", "vae.encoder", "vae.decoder", "text_encoder"}
    for c in report.components:
        assert c.ours.rms <= parity.HALF_FACTOR * c.torch.rms, c
        # The largest of a few hundred errors varies more.
        assert c.ours.maximum <= parity.FACTOR * c.torch.maximum, c
    exact = draw(seeded(stable_diffusion).to(torch.float64), **{**SD, **texts}, output_type="pt")
    ours, theirs = (parity.error(images[on], exact) for on in (True, False))
    assert 0 < ours.rms <= 1.5 * theirs.rms


def test_a_cast_after_attaching():
    both = Pair(stable_diffusion, SD, only="unet")
    plain = both.draw()
    both.each(lambda pipe: pipe.to(torch.float64))
    both.draw()
    both.each(lambda pipe: pipe.to(torch.float32))
    assert np.abs(both.draw() - plain).max() <= 1
    assert both.built() == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_runs_on_oneflow(dtype):
    both = Pair(lambda: stable_diffusion().to(dtype), SD)
    plain = both.draw() if dtype == torch.float32 else None
    with torch.autocast("cpu", torch.bfloat16):
        expected, made = both.each(lambda pipe: draw(pipe, **SD))
        off = np.abs(expected - made).max()
        assert off <= parity.most_levels(both.stock, lambda pipe: draw(pipe, **SD), expected, off)
    assert not any(both.fallbacks(path) for path in ("unet", "vae.decoder", "text_encoder"))
    if plain is not None:
        assert not np.array_equal(plain, made) and both.built() == 2
        both.draw()
        assert both.built() == 2


def gradients(pipe) -> list[torch.Tensor]:
    """Of a loss by the weights of the UNet and its input."""
    latents, timestep, prompt = inputs()
    latents.requires_grad_()
    pipe.unet.zero_grad()
    pipe.unet(latents, timestep, prompt).sample.square().mean().backward()
    return [latents.grad, *(p.grad for p in pipe.unet.parameters())]


def test_gradients_are_those_of_torch():
    both = Pair(stable_diffusion, SD, only="unet", fallback="torch")
    plain = both.draw()
    both.each(lambda pipe: pipe.unet.train())
    (stock, attached), said = warned(both.each, gradients)
    assert len(said) == 1 and "gradients" in said[0]
    assert all(torch.equal(a, b) for a, b in zip(stock, attached)) and len(stock) > 50
    for pipe in (both.stock, both.attached):
        torch.optim.SGD(pipe.unet.parameters(), lr=100.0).step()
        pipe.unet.eval()
    # The step is seen by the graph, which reads the same weights.
    assert np.abs(both.draw() - plain).max() > 1
    assert both.built() == 1


def test_dropout_in_training_mode_draws_torchs_numbers():
    both = Pair(lambda: stable_diffusion(unet={"dropout": 0.5}), SD, only="unet", fallback="torch")
    plain = both.draw()
    both.each(lambda pipe: pipe.unet.train())
    trained, said = warned(both.draw)
    assert np.abs(trained - plain).max() > 3
    assert len(said) == 1 and said[0].startswith("unet ") and sum(both.fallbacks().values()) == 2
    both.each(lambda pipe: pipe.unet.eval())
    both.draw()
    assert both.built() == 1


def in_threads(*jobs) -> list:
    """What functions give that run at the same time."""
    results: list = [None] * len(jobs)

    def work(i):
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def test_two_pipelines_in_two_threads():
    """Their graphs are built at the same time, too."""
    first, second = (
        Pair(stable_diffusion, SD, only="unet"),
        Pair(lambda: stable_diffusion(unet={"block_out_channels": (16,)}), SD, only="unet"),
    )
    expected = [[draw(p.stock, seed, **SD) for seed in range(3)] for p in (first, second)]
    made = in_threads(*(lambda p=p: [draw(p.attached, seed, **SD) for seed in range(3)] for p in (first, second)))
    assert np.abs(np.array(expected) - np.array(made)).max() <= 1
    assert first.built() == second.built() == 1


def test_two_threads_on_the_models_of_one_pipeline():
    both = Pair(stable_diffusion, SD, only="unet")
    unets = [both.stock.unet, both.attached.unet]

    def run(unet, seed):
        with torch.no_grad():
            latents, timestep, prompt = inputs()
            return [unet(latents + seed, timestep, prompt + i).sample for i in range(5)]

    expected = [run(unets[0], seed) for seed in range(2)]
    made = in_threads(*(lambda seed=seed: run(unets[1], seed) for seed in range(2)))
    for a, b in zip(expected, made):
        for x, y in zip(a, b):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    assert both.built() == 1 and both.calls() == 10


def test_inference_mode_and_grad_mode_take_turns():
    both = Pair(stable_diffusion, SD, only="unet")
    both.each(lambda pipe: pipe.unet.requires_grad_(False))
    results = []
    for context in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with context():
            results.append([unet(*inputs()).sample for unet in (both.stock.unet, both.attached.unet)])
    for stock, attached in results:
        torch.testing.assert_close(stock, attached, rtol=1e-4, atol=1e-4)
    assert both.built() == 1 and both.calls() == 3
