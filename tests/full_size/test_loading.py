"""Models at their published sizes: `make test-full-size`, which says how long each load takes and how much memory.

Needs 5 GB on the disk and 6 GB of memory for Stable Diffusion 1.5, 14 GB and 16 GB for SDXL.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import narrow_models
import pytest

pytestmark = [pytest.mark.full_size, pytest.mark.timeout(3600)]
SLACK = 2.0  # GiB beside the weights


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function: the folder and the file of a family at its published size, in fp16."""
    root = tmp_path_factory.mktemp("full")

    @cache
    def make(family):
        pipe = narrow_models.build_full(family)
        pipe.save_pretrained(root / family)
        file = narrow_models.save(narrow_models.single_file(pipe), root / f"{family}.safetensors")
        return {"folder": root / family, "file": file}

    return make


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_model_loads_within_its_weights_and_little_more(made, capsys, family, form, dtype):
    if family == "sdxl" and dtype != "float16":
        pytest.skip("takes more memory than machines that run tests have")
    command = [sys.executable, str(Path(narrow_models.__file__).with_name("loading_memory.py"))]
    done = subprocess.run([*command, str(made(family)[form]), dtype], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{family} {form} {dtype}: {', '.join(f'{name} {value:.2f}' for name, value in found.items())}")
    assert found["drawn"]
    assert found["peak"] < found["weights"] + SLACK
