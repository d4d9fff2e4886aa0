"""What differs from call to call: prompts, sizes, callbacks, schedulers, seeds."""

import diffusers
import numpy as np
import pytest
import torch

from diffusers_oneflow.backend import dispatcher_of

from .pair import SD, Pair, differ, draw, stable_diffusion


@pytest.fixture(scope="module")
def shared() -> Pair:
    """One pair for calls that leave a pipeline as it was; the graphs of a plain call are built."""
    pair = Pair(stable_diffusion, SD)
    pair.draw()
    return pair


def embeddings(pipe, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def test_a_textual_inversion():
    pair = Pair(stable_diffusion, {**SD, "prompt": "a large <thing>"}, only="text_encoder")
    before = pair.draw()
    learned = {"<thing>": torch.randn(2, 32, generator=torch.Generator().manual_seed(3))}
    pair.each(lambda pipe: pipe.load_textual_inversion(dict(learned)))
    with_it = pair.draw()
    assert differ(before, with_it)
    pair.each(lambda pipe: pipe.unload_textual_inversion())
    assert not differ(before, pair.draw())
    # The embedding's weight is another one after each.
    assert pair.built("text_encoder") == 3


def test_clip_skip(shared):
    """Stable Diffusion's own raises with this release of transformers, so what it asks of the text encoder is compared, too."""

    def outcome(pipe):
        try:
            return draw(pipe, **SD, clip_skip=1)
        except AttributeError as error:
            return str(error)

    stock, attached = shared.each(outcome)
    assert stock == attached if isinstance(stock, str) else np.abs(stock - attached).max() <= 1
    ids, built = torch.tensor([[1, 5, 7, 2]]), shared.built("text_encoder")
    with torch.no_grad():
        states = shared.each(lambda pipe: pipe.text_encoder(ids, output_hidden_states=True).hidden_states)
    assert len(states[0]) == len(states[1]) == 3 and shared.built("text_encoder") == built + 1
    for a, b in zip(*states):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_prompt_embeddings_given_directly(shared):
    unet, text = shared.built(), shared.calls("text_encoder")
    given, negative = embeddings(shared.stock, "a small blue star"), embeddings(shared.stock, "")
    made = shared.draw(prompt=None, prompt_embeds=given, negative_prompt_embeds=negative)
    assert differ(made, shared.draw()) and shared.built() == unet
    assert np.array_equal(made, shared.draw(prompt="a small blue star"))
    assert shared.calls("text_encoder") > text


def test_batches_sizes_and_lengths_have_graphs_of_their_own_and_find_them_again():
    pair = Pair(stable_diffusion, SD)  # other tests have some of these built in the one that they share
    pair.draw()
    longer = torch.cat([embeddings(pair.stock, "a small blue star")] * 2, 1)
    kinds = [
        {}, {"prompt": ["a red star", "a blue circle"]}, {"num_images_per_prompt": 2}, {"height": 24, "width": 16},
        {"prompt": None, "prompt_embeds": longer, "negative_prompt_embeds": longer * 0.5}, {"guidance_scale": 1.0},
    ]  # fmt: skip
    before = pair.built()
    shapes = [pair.draw(**kind).shape for kind in kinds]
    assert shapes == [(1, 16, 16, 3), (2, 16, 16, 3), (2, 16, 16, 3), (1, 24, 16, 3), (1, 16, 16, 3), (1, 16, 16, 3)]
    assert pair.built() == before + 4
    for kind in reversed(kinds):
        pair.draw(**kind)
    assert pair.built() == before + 4


def test_guidance_strengths_need_no_other_graph(shared):
    before = shared.built()
    assert differ(shared.draw(guidance_scale=2.0), shared.draw(guidance_scale=9.0))
    shared.draw(guidance_rescale=0.7)
    assert shared.built() == before


def test_seeds(shared):
    images = [draw(shared.attached, seed, **SD) for seed in (0, 1, 0)]
    assert np.array_equal(images[0], images[2]) and differ(images[0], images[1])
    several = [torch.Generator().manual_seed(s) for s in (0, 1)]
    both = draw(shared.attached, **{**SD, "num_images_per_prompt": 2, "generator": several})
    assert np.abs(both - np.concatenate(images[:2])).max() <= 1
    torch.manual_seed(5)
    free = draw(shared.attached, **{**SD, "generator": None})
    torch.manual_seed(5)
    assert np.abs(free - draw(shared.stock, **{**SD, "generator": None})).max() <= 1


def test_a_callback_may_change_the_latents(shared):
    def brighter(pipe, step, timestep, given):
        return {"latents": given["latents"] * 1.5 if step == 0 else given["latents"]}

    before = shared.built()
    assert differ(shared.draw(), shared.draw(callback_on_step_end=brighter))
    assert shared.built() == before


def test_guidance_that_is_switched_off_midway_halves_the_batch(shared):
    def off(pipe, step, timestep, given):
        if step == 0:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": given["prompt_embeds"].chunk(2)[-1]}
        return {}

    # Large ones, to which even a tiny model listens.
    prompts = {"prompt": None, "prompt_embeds": 9 * torch.randn(1, 5, 32), "negative_prompt_embeds": torch.randn(1, 5, 32)}
    options = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert differ(shared.draw(**prompts, num_inference_steps=3), shared.draw(**prompts, **options, num_inference_steps=3))
    inputs = {tuple(e.shapes) for e in dispatcher_of(shared.attached.unet).entries}
    assert {(f"({n}, 4, 8, 8) float32", "() int64", f"({n}, 5, 32) float32") for n in (1, 2)} <= inputs


def test_an_interrupted_run_stops(shared):
    def stop(pipe, step, timestep, given):
        pipe._interrupt = True
        return given

    calls = shared.calls()
    stopped = shared.draw(num_inference_steps=4, callback_on_step_end=stop)
    assert shared.calls() == calls + 1
    assert differ(stopped, shared.draw(num_inference_steps=4))


def test_a_callback_that_raises_leaves_everything_working(shared):
    def fail(pipe, step, timestep, given):
        raise KeyboardInterrupt

    for pipe in (shared.stock, shared.attached):
        with pytest.raises(KeyboardInterrupt):
            draw(pipe, **SD, callback_on_step_end=fail)
    before = shared.built()
    shared.draw()
    assert shared.built() == before


@pytest.mark.parametrize(
    "kind", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "DDPMScheduler"]
)
def test_another_scheduler(shared, kind):
    plain, known = shared.draw(), [pipe.scheduler for pipe in (shared.stock, shared.attached)]
    try:
        shared.each(lambda pipe: setattr(pipe, "scheduler", getattr(diffusers, kind).from_config(pipe.scheduler.config)))
        before = shared.built()
        assert differ(plain, shared.draw())
        # Euler's timesteps are of another dtype.
        assert shared.built() <= before + (kind == "EulerDiscreteScheduler")
    finally:
        shared.stock.scheduler, shared.attached.scheduler = known
