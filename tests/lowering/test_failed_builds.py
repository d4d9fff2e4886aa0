"""A build that fails leaves OneFlow able to build: each of these ended the process once, so they run in one of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import oneflow, torch
from lowering.harness import Case, Weight, run
from diffusers_oneflow import engine
engine.load()
from diffusers_oneflow.lowering.registry import Refused, lowering

failing = sys.argv[1]

def fail(self):
    if failing == "refusal":
        made = oneflow._C.exp(self)
        raise Refused("on purpose")
    return oneflow._C.clamp_min(self, 2)

lowering("aten.digamma.default")(fail)
for _ in range(30):
    x = torch.ones(3, 3, dtype=torch.uint8 if failing == "missing kernel" else torch.float32)
    case = Case("aten.digamma.default", (torch.ones(3, 3),), {})
    if failing == "missing kernel":
        case.args, case.made = (x,), x
        case.expected = [x]
    try:
        run([case])
        print("it did not fail")
    except RuntimeError:
        pass
    a, b = torch.randn(3, 4), torch.randn(4, 3)
    (result,), = run([Case("aten.mm.default", (a.t(), Weight(b.t())), {})])
    assert torch.allclose(result, a.t() @ b.t(), atol=1e-5)
print("alive")
"""


@pytest.mark.parametrize("failing", ["refusal", "missing kernel"])
def test_other_graphs_are_built_and_right(failing):
    tests = Path(__file__).parents[1]
    script = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script, failing], capture_output=True, text=True, timeout=300)
    assert done.stdout == "alive\n", (done.returncode, done.stdout, done.stderr[-2000:])
