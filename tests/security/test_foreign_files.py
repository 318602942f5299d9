"""Every reader of a file from outside, against what may lie in that file's place and what may stand in it."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from twig.engine.api.calibration import Calibration
from twig.engine.api.errors import ForeignFileError, TwigError
from twig.engine.api.pixels import load_picture
from twig.engine.api.reading import MAX_TENSORS, read_bytes, read_lines
from twig.engine.backends.compile_cache import is_kept
from twig.engine.backends.measuring import remembered
from twig.engine.cli.main import USER_ERROR, run
from twig.engine.judging.registry import Registry, index_works, pictures_in
from twig.engine.judging.works import Works
from twig.engine.models import layout
from twig.engine.models.bank import Bank
from twig.engine.models.checkpoint import load
from twig.engine.records.inspection import read_mask
from twig.engine.records.manifest import Manifest
from twig.engine.study.assessment import read_prompts
from twig.export.store import LEDGER, MANIFEST, ArtifactStore, Key
from twig.export.tensorrt import PlanOptions, build_plan

pytestmark = pytest.mark.slow

READERS = {
    "calibration": Calibration.load,
    "registry": Registry.load,
    "bank": Bank.load,
    "manifest": Manifest.load,
    "captions": read_lines,
    "prompts": read_prompts,
    "config": layout.read_json,
    "picture": load_picture,
    "mask": read_mask,
}
CONSTANTS = (b'{"version": NaN}', b'{"version": 1e999}')
TEXTS = {"captions", "prompts"}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path, reader, trap):
    path = tmp_path / "file"
    trap(path)
    with pytest.raises(TwigError) as error:
        READERS[reader](path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("reader", READERS)
def test_rubbish_is_refused_in_one_printable_line(tmp_path, reader, rubbish):
    path = tmp_path / "file"
    path.write_bytes(rubbish)
    message = ""
    try:
        READERS[reader](path)
    except TwigError as error:
        message = str(error)
    assert message or reader in TEXTS or (reader == "config" and rubbish in CONSTANTS)
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize("name", [b"caf\xe9.json", b"new\nline.json", b"\x1b[2J.json"])
@pytest.mark.parametrize("reader", READERS)
def test_names_that_are_no_text_are_said_so_that_they_can_be_printed(tmp_path, reader, name):
    path = tmp_path / os.fsdecode(name)
    for content in (None, b"\xff"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(TwigError) as error:
            READERS[reader](path)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "command",
    [
        "generate star --rule @{}", "generate star --calibration {}", "generate star --registry {}",
        "generate star --source {}", "generate star --mask {}", "calibrate --captions {}", "inspect {}",
        "registry list --registry {}", "generate star --bank {}",
    ],
)  # fmt: skip
def test_a_command_says_what_lies_there_and_ends(tmp_path, capsys, monkeypatch, command, trap):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    trap(path)
    assert run([part.format(path) for part in command.split()]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("twig: ")


# --- registries ---


@pytest.fixture(scope="module")
def registry(tiny_checkpoint, tmp_path_factory):
    """File of a registry of two works whose pictures are kept."""
    folder = tmp_path_factory.mktemp("works")
    for seed in (1, 2):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{seed}.png")
    path = folder / "registry.safetensors"
    index_works(load(tiny_checkpoint), pictures_in(folder), keep_pictures=True).save(path)
    return path


def header_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def picture_name(tensors):
    return next(name for name in tensors if name.startswith("picture."))


TENSORS = {
    "another width": lambda t: t | {"descriptors": t["descriptors"][:, :7]},
    "one row": lambda t: t | {"descriptors": t["descriptors"][:1]},
    "no rows": lambda t: t | {"descriptors": t["descriptors"].flatten()},
    "another type": lambda t: t | {"descriptors": t["descriptors"].half()},
    "whole numbers": lambda t: t | {"latents": t["latents"].int()},
    "NaN": lambda t: t | {"latents": t["latents"] * float("nan")},
    "infinity": lambda t: t | {"descriptors": t["descriptors"] / 0},
    "flat": lambda t: t | {"latents": t["latents"].flatten(1)},
    "a side of nothing": lambda t: t | {"latents": t["latents"][..., :0]},
    "missing": lambda t: {name: tensor for name, tensor in t.items() if name != "latents"},
    "picture of another type": lambda t: t | {picture_name(t): t[picture_name(t)].float()},
    "picture in one colour": lambda t: t | {picture_name(t): t[picture_name(t)][:1]},
    "picture of nobody": lambda t: t | {"picture.nobody": t[picture_name(t)]},
}
WORKS = {
    "deep": lambda works: "[" * 1000 + "]" * 1000,
    "no list": lambda works: "{}",
    "torn": lambda works: works[:-1],
    "another field": lambda works: json.dumps([one | {"more": 1} for one in json.loads(works)]),
    "a number": lambda works: json.dumps([one | {"name": 7} for one in json.loads(works)]),
    "no id": lambda works: json.dumps([{**one, "id": ""} for one in json.loads(works)]),
    "an id with a cursor": lambda works: json.dumps(
        [{**one, "id": f"\x1b{i}"} for i, one in enumerate(json.loads(works))]
    ),
    "one id": lambda works: json.dumps([json.loads(works)[0]] * 2),
    "fewer": lambda works: json.dumps(json.loads(works)[:1]),
    "no digest": lambda works: json.dumps([one | {"sha256": "none"} for one in json.loads(works)]),
    "half a pair": lambda works: json.dumps([one | {"name": "\ud800"} for one in json.loads(works)]),
}


@pytest.mark.parametrize("change", TENSORS)
def test_a_registry_of_wrong_tensors_is_refused(registry, tmp_path, change):
    tensors = {name: tensor.clone().contiguous() for name, tensor in TENSORS[change](load_file(registry)).items()}
    save_file(tensors, tmp_path / "r", header_of(registry))
    with pytest.raises(TwigError, match="r is no registry of Twig: "):
        Registry.load(tmp_path / "r")


@pytest.mark.parametrize("change", WORKS)
def test_a_registry_of_wrong_works_is_refused(registry, tmp_path, change):
    header = header_of(registry)
    save_file(load_file(registry), tmp_path / "r", header | {"works": WORKS[change](header["works"])})
    with pytest.raises(TwigError, match="r is no registry of Twig: "):
        Registry.load(tmp_path / "r")


@pytest.mark.parametrize("gone", ["format", "autoencoder", "works"])
def test_a_registry_without_its_header_is_refused(registry, tmp_path, gone):
    header = {name: value for name, value in header_of(registry).items() if name != gone}
    save_file(load_file(registry), tmp_path / "r", header)
    with pytest.raises(TwigError, match="r is no registry of Twig: "):
        Registry.load(tmp_path / "r")


def test_works_in_files_of_any_name_are_registered(registry, tiny_checkpoint, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9\n.png")
    path.write_bytes((registry.parent / "1.png").read_bytes())
    index_works(load(tiny_checkpoint), [path]).save(tmp_path / "r")
    (work,) = Registry.load(tmp_path / "r").works
    assert work.name == r"caf\udce9\n.png"


def test_a_trap_among_the_works_is_named(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(TwigError, match=r"a\.png: .*a pipe"):
        Works.load(tmp_path, (64, 64), None)


# --- artifacts ---

KEY = Key({"network": "unet"})


def build(folder):
    (folder / "network.onnx").write_text("weights")


@pytest.mark.parametrize(
    "line",
    [b'{"digest": "a", "k', b"\x7f", b"[]", b"{}", b"null", b'{"digest": 1}', b"[" * 10_000, b"9" * 5000, b""],
)
def test_a_line_of_the_ledger_that_is_none_hides_no_other(tmp_path, line):
    store = ArtifactStore(tmp_path)
    store.folder(KEY, build)
    (tmp_path / LEDGER).write_bytes((tmp_path / LEDGER).read_bytes() + line)
    store.folder(Key({"network": "vae"}), build)
    assert [row.key["network"] for row in store.ledger()] == ["unet", "vae"]


def test_an_artifact_with_rubbish_for_a_manifest_is_built_again(tmp_path, rubbish):
    store = ArtifactStore(tmp_path)
    (store.folder(KEY, build) / MANIFEST).write_bytes(rubbish)
    assert [entry.key for entry in store.entries()] == [{}]
    assert "no readable manifest" in store.verify()[KEY.digest]
    assert (store.folder(KEY, build) / "network.onnx").read_text() == "weights"
    assert store.verify() == {}


@pytest.mark.parametrize(
    "manifest",
    [{"files": {"network.onnx": 7}}, {"files": {"network.onnx": {}}}, {"key": {"network": 1}}, {"built": "then"}],
)
def test_an_artifact_with_a_manifest_of_other_values_is_built_again(tmp_path, manifest):
    store = ArtifactStore(tmp_path)
    path = store.folder(KEY, build) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | manifest))
    assert store.verify()[KEY.digest]
    store.folder(KEY, build)
    assert store.verify() == {}


def test_a_trap_in_place_of_a_timing_cache_is_refused_before_anything_is_built(tmp_path, trap):
    trap(tmp_path / "timing")
    with pytest.raises(ForeignFileError):
        build_plan(None, tmp_path / "graph", None, [], PlanOptions(), tmp_path / "timing")


def test_a_trap_in_place_of_a_plan_is_refused(tmp_path, trap):
    trap(tmp_path / "plan")
    with pytest.raises(ForeignFileError):
        read_bytes(tmp_path / "plan", MAX_TENSORS)


def test_a_file_of_which_much_may_be_read_takes_no_more_memory_than_it_has(tmp_path):
    (tmp_path / "plan").write_bytes(b"plan")
    assert read_bytes(tmp_path / "plan", MAX_TENSORS) == b"plan"


def test_measurements_that_cannot_be_read_are_made_again(tmp_path, rubbish):
    for content in (rubbish, b'{"key": {"abacus": 1}}', b'{"key": {}}', b'{"key": {"torch": "1"}}'):
        (tmp_path / "memory.json").write_bytes(content)
        assert remembered(tmp_path / "memory.json") == {}


def test_a_program_whose_checksum_is_rubbish_goes(tmp_path, rubbish):
    (tmp_path / "a.blob").write_bytes(b"program")
    (tmp_path / "a.blob.sha256").write_bytes(rubbish)
    assert not is_kept(tmp_path / "a.blob")
    assert not list(tmp_path.iterdir())
