"""examples/quickstart.ipynb: executed by a kernel, its images compared with torch's."""

import ast
import base64
import io

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_oneflow.demo.compare import difference


@pytest.fixture(scope="module")
def notebook(examples):
    return nbformat.read(examples / "quickstart.ipynb", as_version=4)


@pytest.fixture(scope="module")
def cells(notebook, examples) -> dict:
    """The executed cells by id."""
    ran = nbformat.from_dict(notebook)
    nbclient.NotebookClient(ran, timeout=300, resources={"metadata": {"path": str(examples)}}).execute()
    return {cell.id: cell for cell in ran.cells}


def shown(cell, kind: str) -> str:
    (output,) = [output for output in cell.outputs if output.output_type == "execute_result"]
    return output.data[kind]


def image(cell) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(shown(cell, "image/png"))))


def test_it_is_valid_and_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


def test_it_shows_torchs_image_and_oneflows(cells, demo_pipe):
    (prompt,) = [
        node.value.value
        for node in ast.parse(cells["torch"].source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "prompt"
    ]
    expected = demo_pipe(prompt, num_inference_steps=25, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.ptp(np.asarray(expected)) > 100
    for name in ("torch", "oneflow"):
        assert difference(image(cells[name]), expected) <= 1
    assert shown(cells["difference"], "text/plain") in ("0", "1")
    assert shown(cells["back"], "text/plain") == "0"


def test_it_shows_both_images_and_where_they_were_drawn(cells):
    assert image(cells["both"]).width > 2 * image(cells["oneflow"]).width
    said = "".join(output.data["text/plain"] for output in cells["explain"].outputs)
    assert "unet" in said and "vae.decoder" in said and "text_encoder" in said
