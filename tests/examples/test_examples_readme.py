"""examples/README.md names every example, and commands that exist."""

import re
import shlex


def test_every_example_is_named_and_there(examples):
    text = (examples / "README.md").read_text()
    named = set(re.findall(r"\]\((\S+?)\)", text))
    scripts = {file.name for file in examples.iterdir() if file.suffix in (".py", ".ipynb")}
    assert scripts == named
    assert "](examples/README.md)" in (examples.parent / "README.md").read_text()


def test_every_command_names_files_that_are_there(examples):
    text = (examples / "README.md").read_text()
    commands = re.findall(r"(?:`|^    )((?:jupyter|python|accelerate) [^`\n]+)", text, re.MULTILINE)
    assert len(commands) == 5
    for words in map(shlex.split, commands):
        files = [word for word in words if word.startswith("examples/")]
        assert files and all((examples.parent / file).is_file() for file in files), words
