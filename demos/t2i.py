"""Draw images from a prompt: ``python3 t2i.py --prompt "a red circle"``.

The model is a folder, a repository of the Hugging Face hub, or the small one that comes with the package. What is
downloaded goes to $HF_HOME; $HF_TOKEN or $HUGGING_FACE_HUB_TOKEN opens gated repositories.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer


def main(
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a large red circle left of a small blue star",
    model: Annotated[str, typer.Option(help='Folder or repository; "demo" is the small model of the package.')] = (
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    size: Annotated[int | None, typer.Option(min=8, help="Width and height in pixels; by default the model's.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default float16 on cuda.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for the images.")] = Path(),
):
    """Draw images from a prompt on OneFlow."""
    import torch as real
    from huggingface_hub.errors import HFValidationError

    import diffusers_oneflow
    from diffusers_oneflow import engine

    if reason := engine.refusal():
        stop(reason)
    torch = engine.load()  # `import oneflow as torch`, without what OneFlow says while it is imported

    device = device or ("cuda" if real.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not real.cuda.is_available():
        stop(f"--device {device}: torch sees no GPU here; in a container, add --gpus all")
    dtype = dtype or ("float16" if device.startswith("cuda") else "float32")
    if dtype not in ("float32", "bfloat16", "float16"):
        stop(f"--dtype {dtype} is none of float32, bfloat16, float16")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        stop(f"{out.resolve()} cannot be written: in a container, add --user $(id -u):$(id -g)")
    try:
        pipe = diffusers_oneflow.OneFlowDiffusionPipeline.from_pretrained(
            diffusers_oneflow.demo_model() if model == "demo" else model, dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError, HFValidationError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        stop(f"{model} could not be loaded: {said[0]}; --model demo needs no download")
    arguments = {} if size is None else {"width": size, "height": size}
    generator = torch.Generator().manual_seed(seed)
    try:
        pipe = pipe.to(device)
        drawn = pipe(prompt, num_inference_steps=steps, num_images_per_prompt=images, generator=generator, **arguments).images
    except (RuntimeError, ValueError, AssertionError) as error:  # a size or device that there is not, no room
        said = str(error).strip().splitlines() or [type(error).__name__]
        stop(f"nothing was drawn on {device}: {said[0]}")
    name = "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:60] or "image"
    for number, image in enumerate(drawn):
        file = out / f"{name}-{number}.png"
        image.save(file)
        print(f"{file}: {image.width}x{image.height}")


def stop(message: str):
    """End with a sentence."""
    sys.exit(f"t2i.py: {message}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    typer.run(main)
