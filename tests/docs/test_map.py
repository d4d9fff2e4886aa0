"""The map of the code in CONTRIBUTING.md has every module, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "diffusers_oneflow"
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
MAP = TEXT[TEXT.index("## The map") : TEXT.index("## Setting up")]


def test_every_module_is_on_the_map():
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"(?<![\w/])(\w+\.py)\b", MAP))
    within = {path.name for folder in ("passes", "lowering", "kernels") for path in (PACKAGE / folder).glob("*.py")}
    assert modules - named == set(), "not on the map"
    assert named - modules - within == set(), "on the map, but gone"


def test_every_folder_is_on_the_map():
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert {f for f in folders if f"{f}/" not in MAP} == set()


def test_targets_of_make_exist():
    rules = (ROOT / "Makefile").read_text()
    for page in (TEXT, (ROOT / "README.md").read_text()):
        for target in re.findall(r"^    make ([\w-]+)|`make ([\w-]+)", page, flags=re.MULTILINE):
            name = "".join(target)
            assert re.search(rf"^{name}:", rules, flags=re.MULTILINE), name
