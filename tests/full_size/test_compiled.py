"""Stable Diffusion 1.5 with ControlNet and SegFormer-B5, compiled: `make test-full-size`. Takes 17 GB on the disk."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import full_models
import pytest
import torch

pytest.importorskip("openvino", reason="openvino is not installed")
pytestmark = [pytest.mark.full_size, pytest.mark.timeout(3600)]

MOST_OWN = 8.0
"""GiB beside mapped files, of which the system takes back what it needs."""

NETWORKS = ("controlnet", "segmenter", "text_encoder", "unet", "vae_decoder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("compiled")
    full_models.write_segmenter(root / "segmenter", torch.float32)
    model = full_models.write_folder("sd15", root / "model", torch.float32)
    controlnet = full_models.write_controlnet("sd15", root / "controlnet", torch.float32)
    yield [model, controlnet, root / "segmenter", root / "store"]
    shutil.rmtree(root)


def test_four_two_step_jobs_at_once_take_one_program_a_network(folders, capsys):
    program = Path(full_models.__file__).with_name("compiled_memory.py")
    for caches in ("cold", "warm"):
        command = [sys.executable, str(program), *map(str, folders), "4", "256"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        with capsys.disabled():
            print(f"\n{caches} on {platform.machine()}: {found}")
        assert found["drawn"] == [[256, 256]] * 4
        assert {network: len(programs) for network, programs in found["held"].items()} == dict.fromkeys(NETWORKS, 1)
    assert found["own"] < MOST_OWN
