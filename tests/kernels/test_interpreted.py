"""The kernels themselves, run by Triton's interpreter on CPU tensors in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

FILES = {path.stem: path for path in sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))}
LONG = "test_masked_attention"
"""Takes as long as the others together, which share one start of a process."""


@pytest.mark.parametrize(
    "names", [pytest.param([LONG], marks=pytest.mark.slow), sorted(FILES.keys() - {LONG})], ids=" ".join
)
def test_kernels_under_the_interpreter(names):
    command = [sys.executable, "-m", "pytest", *(str(FILES[name]) for name in names), "-p", "no:cacheprovider", "-q"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
