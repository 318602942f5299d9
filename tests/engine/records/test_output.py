"""Records as they are written into a folder: their names, their order, and what a repeat finds."""

import hashlib
import json
import os
import stat
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.choices import Precision
from twig.engine.api.errors import RecordError
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Verdict
from twig.engine.records.audit import AuditLog
from twig.engine.records.credentials import Signer, credentials_of
from twig.engine.records.manifest import InputRecord, Machine, Manifest
from twig.engine.records.naming import run_name
from twig.engine.records.output import OutputFolder
from twig.engine.records.secret import Secret


@pytest.fixture
def folder(tmp_path, model):
    """An empty folder of records."""
    (tmp_path / "out").mkdir()
    return OutputFolder(tmp_path / "out", model, AuditLog(tmp_path / "out/audit.jsonl"))


def lines(folder):
    return [json.loads(line) for line in (folder.path / "audit.jsonl").read_text().splitlines()]


def unaccounted(folder):
    """Pictures that no manifest names, manifests whose line is missing, and lines whose manifest is not that."""
    named = {line["manifest"]: line["manifest_sha256"] for line in lines(folder)}
    pictures = [path for path in folder.path.glob("*.png") if not path.stem.endswith(("-sheet", "-explain"))]
    shown = {Manifest.load(folder.path / name).image for name in named}
    wrong = [path.name for path in pictures if path.name not in shown]
    for name, digest in named.items():
        path = folder.path / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(name)
    return wrong


def changed(result, **changes):
    return replace(result, request=result.request.model_copy(update=changes))


# --- names ---


def names(folder, results):
    return {folder.save(result).stem for result in results}


def test_whatever_decides_a_picture_is_in_its_name(folder, make_result, model, monkeypatch):
    """Each of these ran today under the name of the first."""
    result = changed(make_result(), num_images=2)
    several = [
        result,
        changed(result, prompt="another"),
        changed(result, seed=8),
        changed(result, negative_prompt="moon"),
        replace(result, index=1),
        replace(result, calibration="stricter"),
        replace(result, registry="more works"),
        replace(result, rule="refuse if ssim > 0.1"),
    ]
    found = names(folder, several)
    assert len(found) == len(several)
    others = [
        replace(folder, model=model.model_copy(update={"dtype": Precision.BFLOAT16})),
        replace(folder, model=model.model_copy(update={"hashes": model.hashes | {"unet": "22" * 32}})),
        replace(folder, source=InputRecord(path=None, sha256="33" * 32)),
        replace(folder, mask=InputRecord(path=None, sha256="33" * 32)),
    ]
    found |= {other.save(result).stem for other in others}
    here = Machine.here("cpu").model_copy(update={"threads": 77})
    monkeypatch.setattr(Machine, "here", classmethod(lambda _cls, _device: here))
    found.add(folder.save(result).stem)
    assert len(found) == len(several) + len(others) + 1
    assert unaccounted(folder) == []


def test_a_name_holds_128_bits_and_tells_nobody_the_prompt(folder, make_result, model, tmp_path):
    path = folder.save(make_result())
    digits = path.stem.split("-")[1]
    assert len(digits) == 32
    manifest = Manifest.load(path.with_suffix(".json"))
    assert digits == run_name(manifest, folder.log.secret).removeprefix("twig-")
    assert digits != run_name(manifest, Secret.load(tmp_path / "other")).removeprefix("twig-")


def test_a_thousand_seeds_have_a_thousand_names(make_result, model):
    manifest, secret = Manifest.of(make_result(), model), Secret.load()
    found = set()
    for seed in range(1000):
        request = manifest.request.model_copy(update={"seed": seed})
        found.add(run_name(manifest.model_copy(update={"request": request}), secret))
    assert len(found) == 1000


# --- repeats ---


def test_a_repeat_finds_its_own_record_and_says_so(folder, make_result):
    path = folder.save(make_result())
    manifest = path.with_suffix(".json")
    before = manifest.read_bytes(), path.stat().st_mtime_ns
    assert folder.repeats == set()
    assert folder.save(make_result(timings={"drafting": 9.0})) == path
    assert folder.repeats == {path}
    assert (manifest.read_bytes(), path.stat().st_mtime_ns) == before
    assert [line["event"] for line in lines(folder)] == ["made", "repeated"]
    assert unaccounted(folder) == []


def test_the_same_run_with_another_outcome_keeps_both(folder, make_result):
    pixels = np.asarray(make_result().image).copy()
    pixels[0, 0, 0] ^= 1
    other = make_result(image=Image.fromarray(pixels))
    refused = make_result(verdict=Verdict.REFUSED)
    expired = make_result(verdict=Verdict.EXPIRED, image=None, error="timeout")
    paths = [folder.save(result) for result in (make_result(), other, refused, expired)]
    assert len({path.stem.removesuffix("-refused") for path in paths}) == 4
    again = [folder.save(result) for result in (make_result(), other, refused, expired)]
    assert again == paths
    assert folder.repeats == set(paths)
    assert unaccounted(folder) == []


def test_a_stranger_under_a_records_name_stays(folder, make_result):
    path = folder.save(make_result())
    path.with_suffix(".json").unlink()
    Image.new("RGB", (16, 16)).save(path)
    before = path.read_bytes()
    second = folder.save(make_result())
    assert second != path
    assert path.read_bytes() == before
    second.write_bytes(b"no picture")
    with pytest.raises(RecordError, match="are not of this run"):
        folder.save(make_result())


def test_a_link_where_a_picture_belongs_is_left_alone(folder, make_result, tmp_path):
    path = folder.save(make_result())
    for file in folder.path.glob("twig-*"):
        file.unlink()
    (tmp_path / "target").write_text("precious")
    path.symlink_to(tmp_path / "target")
    path.with_suffix(".json").symlink_to(tmp_path / "nothing")
    second = folder.save(make_result())
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "nothing").exists()
    assert second != path
    assert Image.open(second).size == (16, 16)


@pytest.mark.parametrize("lost", ["line", "picture", "both"])
def test_a_repeat_finishes_what_a_crash_left_unfinished(folder, make_result, lost):
    path = folder.save(make_result())
    if lost != "line":
        path.unlink()
    if lost != "picture":
        (folder.path / "audit.jsonl").unlink()
        (folder.path / "audit.head").unlink()
    assert folder.save(make_result()) == path
    assert path.exists()
    assert [line["event"] for line in lines(folder)] == (["made", "repeated"] if lost == "picture" else ["made"])
    assert unaccounted(folder) == []


# --- what is written, and when ---


def test_a_picture_appears_after_its_line_and_that_after_its_manifest(folder, make_result, monkeypatch):
    append, seen = AuditLog.append, []

    def watch(log, manifest, path, event):
        seen.append(sorted(file.suffix for file in folder.path.iterdir()))
        append(log, manifest, path, event)

    monkeypatch.setattr(AuditLog, "append", watch)
    folder.save(make_result())
    assert seen == [[".json"]]


def test_a_line_that_cannot_be_written_leaves_no_picture(folder, make_result):
    os.mkfifo(folder.path / "audit.jsonl")
    with pytest.raises(RecordError, match="not a regular file"):
        folder.save(make_result())
    assert not list(folder.path.glob("*.png"))


def test_everything_that_spells_a_prompt_is_its_owners_alone(folder, make_result, explanation):
    old = os.umask(0o022)
    try:
        folder.save(make_result(explanation=explanation))
    finally:
        os.umask(old)
    modes = {path.name.rpartition("-")[2]: stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()}
    assert modes == {
        "0.png": 0o644, "0.json": 0o600, "explain.png": 0o600, "explain.npz": 0o600, "explain.json": 0o600,
        "audit.jsonl": 0o600, "audit.head": 0o600,
    }  # fmt: skip


IN_THE_WAY = {
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a folder": (Path.mkdir, "not a regular file"),
    "a link": (lambda path: path.symlink_to("elsewhere"), "is a link"),
    "a link to /dev/full": (lambda path: path.symlink_to("/dev/full"), "is a link"),
    "text": (lambda path: path.write_text('{"number":1}\n'), None),
}


@pytest.mark.parametrize(("make", "message"), IN_THE_WAY.values(), ids=IN_THE_WAY)
@pytest.mark.parametrize("name", ["audit.jsonl", "audit.head"])
def test_what_is_in_the_logs_way_is_found_before_anything_is_drawn(folder, name, make, message):
    make(folder.path / name)
    if message is None and name == "audit.jsonl":
        folder.prepare()  # lines from before there was a chain are continued
        return
    with pytest.raises(RecordError, match=message or "no head of an audit log"):
        folder.prepare()


def test_preparing_leaves_nothing_and_sweeps_what_a_killed_run_left(folder):
    folder.prepare()
    assert list(folder.path.iterdir()) == []
    (folder.path / ".twig-0123456789abcdef.part").touch()
    (folder.path / ".twig-notes.part").touch()
    folder.prepare()
    assert [path.name for path in folder.path.iterdir()] == [".twig-notes.part"]


@contextmanager
def as_somebody():
    """As a user who is not root, for root may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_cannot_be_written_into_is_found_and_named(folder):
    with TemporaryDirectory(dir="/tmp") as outside:
        Path(outside).chmod(0o755)
        (path := Path(outside) / "out").mkdir(mode=0o555)
        with as_somebody(), pytest.raises(PermissionError) as error:
            replace(folder, path=path).prepare()
    assert error.value.filename == str(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
def test_a_log_of_somebody_elses_is_found_before_anything_is_drawn(folder):
    (folder.path / "audit.jsonl").touch()
    os.chown(folder.path / "audit.jsonl", 12345, -1)
    with pytest.raises(RecordError, match="belongs to user 12345"):
        folder.prepare()


def test_a_sheet_bears_the_name_of_its_run(folder, make_result):
    results = [changed(make_result(index=i), num_images=2) for i in range(2)]
    stems = {folder.save(result).stem for result in results}
    sheet = folder.save_sheet(results)
    assert {stem.rpartition("-")[0] for stem in stems} == {sheet.stem.removesuffix("-sheet")}


def test_a_signed_picture_names_its_manifest_and_no_prompt(folder, make_result, signing):
    signer = Signer.load(*signing)
    folder.save(make_result())
    path = replace(folder, signer=signer).save(make_result())
    found = credentials_of(path.read_bytes())
    assert found.valid
    assert found.manifest_sha256 == hashlib.sha256(path.with_suffix(".json").read_bytes()).hexdigest()
    assert found.model_sha256 == folder.model.sha256
    assert b"red star" not in path.read_bytes()
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(make_result().image))


def test_a_request_with_every_setting_has_a_name(folder, make_result):
    request = GenerationRequest(prompt="\u200f\u202e'; DROP", num_images=3, seed=2**63 - 1, timeout=1e-9)
    assert folder.save(make_result(request=request)).exists()
