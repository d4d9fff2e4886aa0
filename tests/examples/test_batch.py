"""examples/batch.py, as a user starts it: what it writes, and that it goes on where it was interrupted."""

import json

import batch
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

from diffusers_oneflow.demo.compare import difference

PROMPTS = ["a red circle", "", "ein grünes Dreieck → rechts", "a blue star", "a pink heart"]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def run(model, tmp_path):
    """run(file, folder, *options): the command, with a tiny model and 2 steps."""

    def run(file, folder="out", *options):
        words = [file, "--out", tmp_path / folder, "--model", model, "--steps", 2, "--batch", 2, *options]
        return CliRunner().invoke(batch.app, list(map(str, words)))

    return run


def index(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]


def content(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_images_are_torchs_and_say_what_they_were_drawn_from(run, prompts, model, tmp_path):
    done = run(prompts, "out", "--seed", 10)
    assert done.exit_code == 0, done.output
    rows = index(tmp_path / "out")
    assert [row["line"] for row in rows] == [1, 3, 4, 5]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"index.jsonl", *(row["file"] for row in rows)}
    pipe = DiffusionPipeline.from_pretrained(model)
    for row in rows:
        assert row["prompt"] == PROMPTS[row["line"] - 1] and row["seed"] == 10 + row["line"] and row["backend"] == "oneflow"
        image = Image.open(tmp_path / "out" / row["file"])
        assert image.text == {key: str(value) for key, value in row.items() if key not in ("file", "line")}
        generator = torch.Generator().manual_seed(row["seed"])
        expected = pipe(row["prompt"], num_inference_steps=2, generator=generator).images[0]
        assert difference(image, expected) <= 1


def test_lines_of_json_name_seeds_and_negative_prompts(run, model, tmp_path):
    asked = [
        {"prompt": "a red circle", "seed": 5},
        {"prompt": "a red circle", "seed": 5, "negative_prompt": "a star"},
        {"prompt": "a red circle"},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    assert run(tmp_path / "asked.jsonl", "out", "--guidance", 4, "--backend", "torch").exit_code == 0
    rows = index(tmp_path / "out")
    assert [(row["seed"], row.get("negative_prompt")) for row in rows] == [(5, None), (5, "a star"), (3, None)]
    pipe = DiffusionPipeline.from_pretrained(model)
    for row in rows:
        expected = pipe(
            row["prompt"], negative_prompt=row.get("negative_prompt"), num_inference_steps=2, guidance_scale=4.0,
            generator=torch.Generator().manual_seed(row["seed"]),
        ).images[0]  # fmt: skip
        assert difference(Image.open(tmp_path / "out" / row["file"]), expected) <= 1


def test_the_same_command_goes_on_where_it_was_interrupted(run, prompts, tmp_path, monkeypatch):
    assert run(prompts, "whole", "--backend", "torch").exit_code == 0
    drawn, draw = [], batch.draw

    def interrupted(pipe, lines, settings):
        if drawn:
            raise KeyboardInterrupt
        drawn.extend(lines)
        return draw(pipe, lines, settings)

    monkeypatch.setattr(batch, "draw", interrupted)
    done = run(prompts, "out", "--backend", "torch")
    assert done.exit_code == 130 and "the same command draws what is left" in done.output
    assert [row["line"] for row in index(tmp_path / "out")] == [1, 3]

    # A machine that goes down may leave files that are not whole.
    damaged = tmp_path / "out/000003.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    (tmp_path / "out/000004.part").write_bytes(b"")
    kept = (tmp_path / "out/000001.png").stat()
    monkeypatch.setattr(batch, "draw", draw)
    assert run(prompts, "out", "--backend", "torch").exit_code == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert (tmp_path / "out/000001.png").stat().st_mtime_ns == kept.st_mtime_ns


def test_what_has_changed_is_drawn_again_and_nothing_else(run, prompts, tmp_path, monkeypatch):
    assert run(prompts, "out", "--backend", "torch").exit_code == 0
    before = content(tmp_path / "out")
    drawn, draw = [], batch.draw
    monkeypatch.setattr(batch, "draw", lambda pipe, lines, settings: drawn.extend(lines) or draw(pipe, lines, settings))
    assert run(prompts, "out", "--backend", "torch").exit_code == 0
    assert not drawn and content(tmp_path / "out") == before

    prompts.write_text(prompts.read_text(encoding="utf-8").replace("blue", "green"), encoding="utf-8")
    assert run(prompts, "out", "--backend", "torch").exit_code == 0
    after = content(tmp_path / "out")
    assert [line.number for line in drawn] == [4, 5]  # the batch of line 4
    assert {name for name in after if after[name] != before[name]} == {"000004.png", "index.jsonl"}

    drawn.clear()
    assert run(prompts, "out", "--backend", "torch", "--steps", 1).exit_code == 0
    assert [line.number for line in drawn] == [1, 3, 4, 5]
    assert {row["steps"] for row in index(tmp_path / "out")} == {1}


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("a circle", (), "line 2: "),
        ('["a circle"]', (), 'line 2: it is no object with a "prompt"'),
        ('{"prompt": "a circle", "sead": 1}', (), 'line 2: "sead" is none of prompt, seed, negative_prompt'),
        ('{"prompt": "a circle", "seed": "1"}', (), 'line 2: "seed" has to be a number'),
        ('{"prompt": "a circle"}', ("--dtype", "int8"), "--dtype int8 is none of float32"),
        ('{"prompt": "a circle"}', ("--model", "./no-such"), "./no-such on oneflow: "),
        ('{"prompt": "a circle"}', ("--backend", "tpu"), "unknown backend 'tpu'"),
    ],
)
def test_mistakes_get_one_sentence(run, tmp_path, line, options, message):
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a star"}\n' + line)
    done = run(tmp_path / "asked.jsonl", "out", *options)
    assert done.exit_code == 2 and message in done.output and "Traceback" not in done.output
