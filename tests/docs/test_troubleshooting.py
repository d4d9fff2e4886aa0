"""The messages of docs/troubleshooting.md are those of the source: none is made up, none is left out.

A message is compared as a template, with "…" where a value stands.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "diffusers_oneflow"
PAGE = ROOT / "docs/troubleshooting.md"
# Exceptions that a stage catches: their words reach nobody. What the pack refuses, OneFlow's own ops take.
CAUGHT = {"Unwritable", "Unknowable", "Differs", "GraphClosed", "KernelFailed", "NotImplementedError", "Exit"}
# What these functions return as text is the reason of a warning or an error; and so is what is kept under these names.
GIVING, KEPT = {"refusal", "_judge", "_build"}, {"reason", "_reason", "refusal"}
LEAST = 8  # letters that a message must have beside its values


def sources() -> list[Path]:
    """The modules that speak to users; not those that made the demo model, and no reasons that `Programs` keeps to itself."""
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent.name != "demo" or p.name == "__init__.py"]


def texts(node: ast.AST | None) -> list[str]:
    """The text of an expression, or of each that it may be; none if it is no literal."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    return [text for value in node.values for text in texts(value)] if isinstance(node, ast.BoolOp) else []


def literals(tree: ast.AST) -> Iterator[str]:
    """Every text in a module, as a template."""
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inner:
            # What str.format fills counts as well.
            yield from (re.sub(r"\{[^{}]*\}", "…", text) for text in texts(node))


def native_literals(source: str) -> list[str]:
    """Every text in a C++ file."""
    joined = re.findall(r'(?:"(?:[^"\\\n]|\\.)*"\s*)+', source)
    return [re.sub(r"%[sd]", "…", "".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', text))) for text in joined]


def said(tree: ast.AST, caught: set[str]) -> Iterator[str]:
    """The messages in a module that a user may see: raised, warned of, printed, or given as a reason."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _name(node.exc.func) not in caught:
            # Unsupported takes what is refused first; the message is the reason.
            at = 1 if _name(node.exc.func) == "Unsupported" else 0
            yield from texts(node.exc.args[at]) if len(node.exc.args) > at else ()
        elif isinstance(node, ast.Call) and _name(node.func) in ("_stop", "warn", "_warn", "why_not"):
            yield from texts(node.args[1 if _name(node.func) == "why_not" else 0])
        elif isinstance(node, ast.Call) and _name(node.func) == "print" and any(k.arg == "file" for k in node.keywords):
            yield from texts(node.args[0])
        elif isinstance(node, ast.Assign) and any(_name(target) in KEPT for target in node.targets):
            yield from texts(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name in GIVING:
            for returned in (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)):
                yield from texts(returned.elts[0] if isinstance(returned, ast.Tuple) else returned)


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def documented(page: str) -> list[str]:
    """The messages of the page: what stands as code in the first column of its tables; of near misses in the second."""
    found = []
    for section in page.split("\n## ")[1:]:
        column = 1 if section.startswith("Near misses") else 0
        for line in section.splitlines():
            cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
            if line.startswith("| ") and len(cells) > column:
                found += re.findall("`([^`]+)`", cells[column])
    return found


def matches(message: str, template: str) -> bool:
    """Whether a message of the page is a template of the source; "…" may stand for more than one value."""
    return re.fullmatch(".*".join(map(re.escape, message.split("…"))), template, re.DOTALL) is not None


MESSAGES = documented(PAGE.read_text())


@pytest.fixture(scope="module")
def known() -> set[str]:
    found = {text for path in sources() for text in literals(ast.parse(path.read_text()))}
    return found.union(*(native_literals(path.read_text()) for path in PACKAGE.rglob("csrc/**/*.cpp")))


@pytest.mark.parametrize("message", MESSAGES)
def test_a_documented_message_exists(message, known):
    assert len(message.replace("…", "").strip()) >= LEAST - 1, "too short to be found by"
    assert any(matches(message, template) for template in known)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_message_is_documented(path):
    caught = CAUGHT | ({"Refused"} if path.parent.name == "kernels" else set())
    if path.name == "programs.py":
        return  # why a program is not stored is kept for tests
    found = [text for text in said(ast.parse(path.read_text()), caught) if re.search(r"\w", text)]
    missing = [text for text in found if not any(matches(m, text) for m in MESSAGES)]
    assert not missing, f"docs/troubleshooting.md has no row for {missing}"


def test_no_message_stands_there_twice():
    assert sorted(MESSAGES) == sorted(set(MESSAGES))


def test_a_made_up_message_and_a_missing_one_would_be_found(known):
    assert not any(matches("the moon is in the wrong … today", template) for template in known)
    new = ast.parse('def f(x):\n    raise Unsupported("a thing", f"it is {x} too many")\n')
    assert list(said(new, CAUGHT)) == ["it is … too many"]
    assert not any(matches(message, "it is … too many") for message in MESSAGES)
