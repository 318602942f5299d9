"""A folder that a test may break, and a hub that nobody may ask."""

import shutil
from functools import cache
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


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """Return a function: a family's narrow pipeline, its folder, and its single file, each made once."""
    import narrow_models

    root = tmp_path_factory.mktemp("narrow")

    @cache
    def made(family):
        pipe = narrow_models.build(family)
        pipe.save_pretrained(root / family)
        return pipe, root / family, narrow_models.save(narrow_models.single_file(pipe), root / f"{family}.safetensors")

    return made
