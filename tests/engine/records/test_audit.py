"""The audit log: what a line says, how lines are found, and how they are forgotten."""

import hashlib
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from chained_logs import found, lines
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Verdict
from twig.engine.records.audit import AuditLog, Event
from twig.engine.records.manifest import Manifest
from twig.engine.records.pictures import sheet_png
from twig.engine.records.stores import Query


def test_a_line_for_each_image_and_none_is_lost(write, make_result):
    write()
    path = write(make_result(verdict=Verdict.REFUSED))
    assert [line["verdict"] for line in lines(path)] == ["accepted", "refused"]
    assert [line["number"] for line in lines(path)] == [1, 2]


def test_a_line_names_its_manifest_and_what_was_judged(write, tmp_path):
    (line,) = lines(write())
    manifest = tmp_path / line["manifest"]
    assert line["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert line["scores"]["ssim"]["value"] == 0.25
    assert line["calibration"] == "test-1"
    assert line["seeds"] == [11]


def test_the_log_holds_no_prompt_unless_told_to_and_nothing_that_a_guess_can_be_checked_by(write, make_result):
    path = write()
    assert "red star" not in path.read_text()
    assert lines(write(prompts=True))[1]["prompt"] == "a red star"
    request = make_result().request
    guesses = [b"a red star", request.model_dump_json().encode()]
    for guess in guesses:
        assert hashlib.sha256(guess).hexdigest() not in path.read_text()
    manifest = Manifest.load(path.parent / lines(path)[0]["manifest"])
    assert manifest.request_sha256 not in path.read_text()


def test_the_log_and_its_head_are_their_owners_alone(write):
    path = write()
    for file in (path, path.with_suffix(".head")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_lines_are_found_by_prompt_model_verdict_work_and_time(write, make_result, model):
    write()
    attempts = make_result().attempts
    path = write(make_result("a blue house", verdict=Verdict.REFUSED, attempts=(_near(attempts[0]),)))
    log = AuditLog(path)

    def numbers(**wanted):
        return [record.number for record in log.search(Query(**wanted))]

    assert numbers() == [1, 2]
    assert numbers(prompt_hmac=log.prompt_hmac("a blue house")) == [2]
    assert numbers(prompt_hmac=log.prompt_hmac("a blue hous")) == []
    assert numbers(model=model.sha256[:12]) == [1, 2]
    assert numbers(model="0" * 12) == []
    assert numbers(verdict="refused") == [2]
    assert numbers(nearest="work-7") == [2]
    now = datetime.now(UTC)
    assert numbers(since=now - timedelta(1)) == numbers(until=now + timedelta(1)) == [1, 2]
    assert numbers(since=now + timedelta(1)) == numbers(until=now - timedelta(1)) == []


def _near(attempt):
    return type(attempt)(**vars(attempt) | {"nearest": "work-7"})


def test_what_was_forgotten_is_gone_and_said_and_the_chain_is_whole(write, make_result):
    write(prompts=True)
    path = write(make_result("a blue house"), prompts=True)
    folder, log = path.parent, AuditLog(path)
    stem = folder / Path(lines(path)[1]["manifest"]).stem
    belonging = [stem.with_name(stem.name + end) for end in (".png", "-refused.png", "-explain.npz")]
    for file in belonging:
        file.touch()
    blank, run = Image.new("RGB", (8, 8)), stem.name.rpartition("-")[0]
    (folder / "other-sheet.png").write_bytes(sheet_png(blank, ["twig-0"]))
    (folder / "foreign-sheet.png").write_bytes(b"no picture")
    belonging.append(folder / "twig-1-sheet.png")
    belonging[-1].write_bytes(sheet_png(blank, ["twig-0", run]))
    done = log.forget(Query(prompt_hmac=log.prompt_hmac("a blue house")), "asked by letter")
    assert done.numbers == (2,)
    assert set(done.files) == {stem.with_name(stem.name + ".json"), *belonging}
    assert not any(file.exists() for file in done.files)
    assert "blue house" not in path.read_text()
    assert log.prompt_hmac("a blue house") not in path.read_text()
    assert lines(path)[0]["prompt"] == "a red star"
    assert {"verdict", "scores", "model_sha256", "time"} <= lines(path)[1].keys()
    assert lines(path)[2] | {"event": "forgotten", "forgotten": [2], "reason": "asked by letter"} == lines(path)[2]
    assert found(path) == []
    assert log.verify().erased == (2,)
    assert log.forget(Query(numbers=frozenset({2}))).line == 0, "there is nothing left to forget"


def test_lines_of_a_record_are_forgotten_together(write, tmp_path):
    path = write()
    log, manifest = AuditLog(path), tmp_path / lines(path)[0]["manifest"]
    log.append(Manifest.load(manifest), manifest, Event.REPEATED)
    assert log.forget(Query(numbers=frozenset({1}))).numbers == (1, 2)
    assert found(path) == []


def test_an_erased_line_cannot_be_found_by_guessing_what_it_held(write, make_result):
    """Its digest is salted: the same line written anew has another."""
    path = write()
    write()
    digests = {line["erasable_sha256"] for line in lines(path)}
    assert len(digests) == 2
    assert len({line["salt"] for line in lines(path)}) == 2


def test_a_result_is_appended_with_its_manifest(tmp_path, make_result, model):
    class Engine:
        def manifest(self, result):
            return Manifest.of(result, model)

    request = GenerationRequest(prompt="a", source=Image.new("RGB", (16, 16)), mask=np.ones((16, 16), bool))
    result, log = make_result(request=request), AuditLog(tmp_path / "audit.jsonl")
    path = log.append(result, Engine())
    assert log.append(result, Engine()) == path
    made, repeated = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (made["event"], repeated["event"]) == ("made", "repeated")
    assert made["manifest"] == path.name
    assert made["scores"]["ssim"] == {"value": 0.25, "limit": 0.5, "passed": True, "direction": "similarity"}
    assert Manifest.load(path).source is not None
    assert log.verify().findings == ()
    assert [str(line.scores["ssim"]) for line in log.search(Query())] == ["ssim 0.25 <= 0.5"] * 2
