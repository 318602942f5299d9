"""What tests of several commands begin with."""

import shutil

import pytest

from drawn_folders import PROMPT
from model_folders import edit
from twig.engine.cli.main import run


@pytest.fixture(scope="session")
def generated(tiny_checkpoint, tmp_path_factory):
    """Folder with two pictures of one prompt."""
    out = tmp_path_factory.mktemp("out")
    assert run(["generate", PROMPT, "-n", "2", "--steps", "3", "--model", str(tiny_checkpoint), "--out", str(out)]) == 0
    return out


@pytest.fixture
def strict_checkpoint(tiny_checkpoint, tmp_path):
    """The tiny model, calibrated so that nothing is accepted."""
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "strict")
    edit(copy / "calibration.json", limits={"ssim": -1.0})
    return copy
