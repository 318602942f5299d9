"""A folder that a test may break, and a hub that nobody may ask."""

import shutil
from pathlib import Path

import pytest

from twig.engine.models import layout


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.fixture
def no_hub(monkeypatch):
    """Fail the test if anything asks the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(layout, "snapshot_download", refuse)
