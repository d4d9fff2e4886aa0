"""A page that draws a prompt on torch and on OneFlow, side by side: ``python examples/gradio_app.py``."""

import os
import time
from collections.abc import Callable
from typing import Annotated

# transformers speaks of packages it does not find while it is imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Nothing is sent anywhere.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import torch
import typer
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_oneflow import demo_model, explain
from diffusers_oneflow.demo.compare import PROMPT, difference

BACKENDS = ("torch", "oneflow")


def main(
    model: Annotated[str, typer.Option(help='Folder or repository; "demo" is the small model of the package.')] = "demo",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860 on.")] = None,
):
    """Serve a page that draws a prompt on torch and on OneFlow, side by side."""
    page(demo_model() if model == "demo" else model).launch(server_name=host, server_port=port)


def page(model: str) -> gr.Blocks:
    """The page; each backend has a pipeline of its own."""
    with gr.Blocks(title="torch and OneFlow") as blocks:
        gr.Markdown("# One prompt on torch and on OneFlow")
        prompt = gr.Textbox(PROMPT, label="Prompt")
        with gr.Row():
            steps = gr.Slider(1, 100, 25, step=1, label="Steps")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
        button = gr.Button("Draw", variant="primary")
        shown = {}
        with gr.Row():
            for name in BACKENDS:
                with gr.Column():
                    # PNG: the levels of two images are compared, which the default format would change.
                    image = gr.Image(
                        label=name, type="pil", format="png", interactive=False,
                        buttons=["fullscreen", "download"], elem_id=f"image-{name}",
                    )  # fmt: skip
                    shown[name] = image, gr.Textbox(label=f"Seconds on {name}", interactive=False)
        levels = gr.Textbox(label="Largest difference of a pixel, of 255", interactive=False)

        outputs = [*sum(shown.values(), ()), levels]
        event = gr.on([button.click, prompt.submit], lambda: [None] * len(outputs), None, outputs, api_visibility="private")
        for name in BACKENDS:
            # One at a time, whoever asks: pipelines hold the state of what they draw, and seconds are to be compared.
            event = event.then(
                drawing(model, name), [prompt, steps, seed], list(shown[name]), api_name=name,
                show_progress_on=shown[name][0], concurrency_limit=1, concurrency_id="pipelines",
            )  # fmt: skip
        images = [image for image, _ in shown.values()]
        event.success(lambda ours, theirs: str(difference(ours, theirs)), images, levels, api_name="difference")
    return blocks


def drawing(model: str, name: str) -> Callable:
    """Load a pipeline and return what draws with it, for the page: (prompt, steps, seed) -> (image, seconds)."""
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(backend=name)

    def compiling() -> float:
        report = explain(pipe, show=False) if name == "oneflow" else {}
        return sum(sum(graph.seconds.values()) for component in report.values() for graph in component.graphs)

    # The default tells gradio to pass a bar of this call.
    def draw(prompt: str, steps: int, seed: int, progress=gr.Progress()) -> tuple[Image.Image, str]:  # noqa: B008
        def stepped(pipe, step: int, timestep, values: dict) -> dict:
            progress((step + 1, pipe.num_timesteps), desc=name, unit="steps")
            return values

        compiled = compiling()
        progress(0, desc=name)
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(int(seed))
        image = pipe(prompt, num_inference_steps=int(steps), generator=generator, callback_on_step_end=stepped).images[0]
        seconds = time.perf_counter() - start
        compiled = compiling() - compiled
        return image, f"{seconds:.2f}" + (f", {compiled:.2f} of them to compile" if compiled else "")

    return draw


if __name__ == "__main__":
    typer.run(main)
