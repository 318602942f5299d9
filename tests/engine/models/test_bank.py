"""A bank's file: what is written is read again, and what is no bank is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from small_banks import small_bank
from twig.engine.api.errors import CheckpointError
from twig.engine.models.bank import FILE, Bank
from twig.engine.models.checkpoint import load


@pytest.fixture(scope="module")
def bank():
    return small_bank(scenes=24)


@pytest.fixture
def path(bank, tmp_path):
    bank.save(tmp_path / FILE)
    return tmp_path / FILE


def test_what_is_read_is_what_was_written(bank, path):
    again = Bank.load(path)
    assert again.version == bank.version
    assert again.description == bank.description
    for before, after in zip(bank.shapes, again.shapes, strict=True):
        assert (before.scene, before.label, before.ground, before.id) == (
            after.scene, after.label, after.ground, after.id,
        )  # fmt: skip
        assert np.array_equal(before.mask, after.mask)


def test_the_version_is_of_the_content(bank):
    shorter = Bank(bank.shapes[:-1], bank.description)
    first, *others = bank.shapes
    moved = Bank((replace(first, left=first.left - 1), *others), bank.description)
    assert len({bank.version, shorter.version, moved.version, small_bank(scenes=24).version}) == 3


def test_an_empty_bank_is_one(tmp_path):
    Bank((), "nothing").save(tmp_path / FILE)
    assert Bank.load(tmp_path / FILE).shapes == ()


def test_it_is_small(path, bank):
    assert path.stat().st_size < 200 * len(bank.shapes)


def altered(path, header=None, **tensors):
    """Write the file again with other content."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file(load_file(path) | tensors, path, metadata | (header or {}))


def with_object(path, column, value):
    objects = load_file(path)["objects"].copy()
    objects[0, column] = value
    return {"objects": objects}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: {"header": {"format": "another"}}, "its format is 'another'"),
        (lambda path: {"header": {"labels": "[1]"}}, "valid string"),
        (lambda path: {"header": {"scenes": "{}"}}, "tuple"),
        (lambda path: {"header": {"scenes": "[]"}}, "an object of scene 0"),
        (lambda path: {"header": {"scenes": "[" * 100}}, "deep"),
        (lambda path: with_object(path, 0, 99), "an object of scene 99"),
        (lambda path: with_object(path, 1, 99), "an object with label 99"),
        (lambda path: with_object(path, 2, -2), "an object with ground -2"),
        (lambda path: with_object(path, 3, 2**31 - 1), "its frame has 64 cells"),
        (lambda path: with_object(path, 5, 0), "height 0"),
        (lambda path: {"masks": load_file(path)["masks"][:-1]}, "the bits of all objects"),
        (lambda path: {"masks": np.zeros_like(load_file(path)["masks"])}, "is empty"),
        (lambda path: {"objects": load_file(path)["objects"].astype(np.int64)}, "must be int32"),
    ],
)
def test_files_that_are_no_bank_are_refused(path, change, message):
    altered(path, **change(path))
    with pytest.raises(CheckpointError, match=message) as caught:
        Bank.load(path)
    assert "is no bank of shapes" in str(caught.value)


def test_scenes_of_absurd_size_are_refused(path):
    with safe_open(path, "np") as file:
        scenes = json.loads(file.metadata()["scenes"])
    scenes[0]["rows"] = 10**9
    altered(path, {"scenes": json.dumps(scenes)})
    with pytest.raises(CheckpointError, match="less than or equal to 128"):
        Bank.load(path)


def test_a_models_folder_holds_its_bank(bank, tiny_checkpoint, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for part in tiny_checkpoint.iterdir():
        (folder / part.name).symlink_to(part)
    bank.save(folder / FILE)
    assert load(folder).bank.version == bank.version
    assert load(tiny_checkpoint).bank is None
