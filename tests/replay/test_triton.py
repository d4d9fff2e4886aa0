"""The Triton kernels, run by Triton's interpreter: no GPU is needed to see whether they are right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch")


def test_the_kernels_are_right_in_the_interpreter():
    # The interpreter has to be on before Triton is imported, which torch may have done here.
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-o",
        "addopts=",
        *(
            str(Path(__file__).parent / f"{name}.py")
            for name in (
                "triton_cases",
                "triton_graphs",
                "move_cases",
                "norm_cases",
                "row_norm_cases",
                "upsampling_cases",
                "gate_cases",
                "quack_cases",
                "short_attention_cases",
            )
        ),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 40
