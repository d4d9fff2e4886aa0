"""Draw every line of a file on several devices: ``accelerate launch examples/distributed.py prompts.txt --out images``.

Lines, options and files are those of batch.py, beside this file. Every process draws its share of the batches on its own
device; batches are those that one process would draw, so the images are the same, however many processes there are.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import batch
import torch
import typer
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from tqdm import tqdm

app = typer.Typer(add_completion=False)


@app.command()
def main(
    prompts: batch.Prompts,
    out: batch.Out = Path("images"),
    model: batch.Model = "demo",
    backend: batch.Backend = "oneflow",
    at_once: batch.Batch = 4,
    seed: batch.Seed = 0,
    steps: batch.Steps = 25,
    guidance: batch.Guidance = None,
    size: batch.Size = None,
    dtype: batch.Dtype = "float32",
):
    """Draw every line of a file that is not drawn yet, on the devices that accelerate launch was told of."""
    state = joined()
    settings = batch.Settings(model, backend, dtype, steps, guidance, size)
    folder = batch.opened(prompts, out, seed, settings)
    if state.is_main_process:
        folder.write_index()
    # All split one list: what a process finds in the folder may have been drawn by another a moment before.
    (left,) = broadcast_object_list([folder.left(at_once)])
    drawn = []
    with state.split_between_processes(left) as mine:
        if mine:
            pipe = batch.load(settings, state.device)
            with tqdm(total=sum(map(len, mine)), unit="image", disable=not state.is_local_main_process) as bar:
                for lines in mine:
                    folder.put(lines, batch.draw(pipe, lines, settings))
                    drawn += lines
                    bar.update(len(lines))
    numbers = " ".join(str(line.number) for line in drawn) or "none"
    # In one piece, since all processes write to one stream.
    sys.stdout.write(f"process {state.process_index} of {state.num_processes} on {state.device} drew lines: {numbers}\n")
    sys.stdout.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        batch.opened(prompts, out, seed, settings).write_index()
    state.destroy_process_group()


def joined() -> PartialState:
    """This process's place among those that accelerate launch started; a process started without it is alone."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # Who is done first waits for the others, however long they draw.
    state = PartialState(cpu=cpu, timeout=timedelta(weeks=4))
    if state.num_processes == 1 and "MASTER_ADDR" in os.environ:
        print(
            "distributed.py: accelerate launch started one process only; on CPUs it starts several with --multi_gpu, "
            "which needs no GPU, in place of --cpu",
            file=sys.stderr,
        )
    return state


if __name__ == "__main__":
    app()
