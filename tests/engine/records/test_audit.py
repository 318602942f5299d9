import hashlib
import json
import stat
from pathlib import Path

import pytest

from twig.engine.api.result import Verdict
from twig.engine.records.audit import AuditLog
from twig.engine.records.manifest import Manifest


@pytest.fixture
def write(tmp_path, make_result, model):
    """Append the line of a result to a log and return the log's path."""

    def append(result=None, **options) -> Path:
        manifest = Manifest.of(result or make_result(), model, image="a.png")
        manifest.save(tmp_path / "a.json")
        log = AuditLog(tmp_path / "audit.jsonl", **options)
        log.append(manifest, tmp_path / "a.json")
        return log.path

    return append


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_image_and_none_is_lost(write, make_result):
    write()
    path = write(make_result(verdict=Verdict.REFUSED))
    assert [line["verdict"] for line in lines(path)] == ["accepted", "refused"]


def test_a_line_names_its_manifest_and_what_was_judged(write, tmp_path):
    (line,) = lines(write())
    assert line["manifest"] == "a.json"
    assert line["manifest_sha256"] == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    assert line["scores"]["ssim"]["value"] == 0.25
    assert line["calibration"] == "test-1"
    assert line["seeds"] == [11]


def test_the_log_holds_no_prompt_unless_told_to(write):
    path = write()
    assert "red star" not in path.read_text()
    assert lines(path)[0]["prompt_sha256"] == hashlib.sha256(b"a red star").hexdigest()
    assert lines(write(prompts=True))[1]["prompt"] == "a red star"


def test_the_log_is_its_owners_alone(write):
    assert stat.S_IMODE(write().stat().st_mode) == 0o600
