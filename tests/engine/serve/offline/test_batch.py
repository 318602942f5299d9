"""`twig batch`: a file of requests to its end, whatever ends a run of it before."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, TERMINATED, USER_ERROR
from twig.engine.records.audit import AuditLog
from twig.engine.records.credentials import credentials_of
from twig.engine.records.stores import Query
from twig.engine.serve.offline.ledger import Ledger
from twig.engine.serve.offline.lines import MOST_LINE, Survey
from twig.engine.serve.offline.lines import read as read_lines

PROMPT = "a red star on a green field"


def line(custom_id, prompt=PROMPT, **body):
    entry = {"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations"}
    return json.dumps(entry | {"body": {"prompt": prompt} | body})


@pytest.fixture
def batch(tiny_checkpoint, tmp_path, capsys):
    """Return a function that runs a file of these lines and returns status, results and errors by custom_id."""
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"model: {{path: {tiny_checkpoint}, slots: 4, rows: 4}}\n"
        "drawing: {steps: 1, rule: refuse if ssim > 1, preset: gentle}\n"
    )

    def call(lines, *words):
        (tmp_path / "requests.jsonl").write_text("\n".join(lines) + "\n")
        words = [str(tmp_path / "requests.jsonl"), "--out", str(tmp_path / "out"), "--config", str(config), *words]
        if "--words" in words:
            return [word for word in words if word != "--words"]
        status = run(["batch", *words])
        return status, *(read(tmp_path / "out" / name) for name in ("results.jsonl", "errors.jsonl"))

    return call


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def made(folder):
    """Lines of the audit log: what each tells, and of which manifest."""
    return [(told.event, told.manifest) for told in AuditLog(folder / "audit.jsonl").search(Query())]


def test_each_line_is_answered_once_with_its_pictures_and_records(batch, tmp_path):
    status, results, errors = batch([line("a", n=2), "", line("b", twig={"seed": 7}), line("c", size="64x64")])
    assert (status, errors) == (DONE, [])
    assert {one["custom_id"]: one["line"] for one in results} == {"a": 1, "b": 3, "c": 4}
    told = {one["custom_id"]: one["response"]["body"]["data"] for one in results}
    assert [image["twig"]["index"] for image in told["a"]] == [0, 1]
    assert told["b"][0]["twig"]["seed"] == 7
    assert told["c"][0]["twig"]["seed"] != told["a"][0]["twig"]["seed"]
    for image in (image for images in told.values() for image in images):
        assert image["twig"]["verdict"] == "accepted"
        assert (tmp_path / "out" / image["file"]).is_file()
        assert (tmp_path / "out" / f"{image['twig']['record']}.json").is_file()
    assert len(made(tmp_path / "out")) == 4
    assert run(["audit", "verify", str(tmp_path / "out" / "audit.jsonl")]) == DONE


def test_a_line_names_the_model_that_draws_it_and_all_are_signed(batch, tmp_path, tiny_checkpoint, signing):
    with (tmp_path / "serve.yaml").open("a") as file:
        file.write(f"models: [{{name: slow, path: {tiny_checkpoint}, drawing: {{steps: 3}}}}]\n")
        file.write(f"records: {{sign: {json.dumps([*map(str, signing)])}}}\n")
    lines = [line("a", model="slow"), line("b", model="twig"), line("c"), line("d", model="none")]
    status, results, errors = batch(lines)
    told = {one["custom_id"]: one["response"]["body"]["data"][0]["twig"]["rows"] for one in results}
    assert status == USER_ERROR
    assert told["a"] > told["b"] == told["c"]
    pictures = [tmp_path / "out" / one["response"]["body"]["data"][0]["file"] for one in results]
    assert all(credentials_of(path.read_bytes()).valid for path in pictures)
    assert errors[0]["response"]["body"]["error"]["message"].endswith("there is 'twig', 'slow'")
    assert run(["audit", "verify", str(tmp_path / "out" / "audit.jsonl")]) == DONE


def test_bad_lines_are_named_and_the_rest_goes_on(batch, tmp_path, capsys):
    bad = [
        ("nonsense", "not valid JSON"),
        ("[]", "no JSON object"),
        ("\udcff", "no UTF-8"),
        (json.dumps({"custom_id": "u", "method": "POST", "url": "/v1/chat/completions", "body": {}}), "url"),
        (line("x" * 513), "custom_id"),
        (line("a"), "an earlier line has this custom_id"),
        (line("long", prompt="x" * MOST_LINE), "longer than"),
        (line("colour", colour="red"), "there is no such field"),
        (line("draft", twig={"draft": True}), "lie in its folder"),
        (line("stream", stream=True), "lie in its folder"),
        (line("jpeg", output_format="jpeg"), "lie in its folder"),
        (line("size", size="63x64"), "63"),
    ]
    texts = [line("a"), *(text for text, _ in bad), line("z")]
    (tmp_path / "requests.jsonl").write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    words = batch([""], "--words")
    (tmp_path / "requests.jsonl").write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    assert run(["batch", *words]) == USER_ERROR
    assert "2 of 14 lines answered, 12 failed" in capsys.readouterr().err
    assert {one["custom_id"] for one in read(tmp_path / "out" / "results.jsonl")} == {"a", "z"}
    errors = {one["line"]: one for one in read(tmp_path / "out" / "errors.jsonl")}
    for number, (_, message) in enumerate(bad, 2):
        told = errors[number]
        said = told["error"] or told["response"]["body"]["error"]
        assert message in said["message"], number
    assert errors[9]["response"]["status_code"] == 400


def test_a_second_run_draws_what_is_left_and_what_was_mended(batch, tmp_path):
    batch([line("a"), line("b", colour="red")])
    status, results, errors = batch([line("new"), line("a"), line("b", colour="red")])
    assert (status, len(results), len(errors)) == (USER_ERROR, 2, 1)
    (tmp_path / "out" / "errors.jsonl").unlink()
    status, results, errors = batch([line("a"), line("b"), line("new")])
    assert (status, errors) == (DONE, [])
    assert sorted(one["custom_id"] for one in results) == ["a", "b", "new"]


def test_programs_and_the_quiet_get_what_they_asked_for(batch, capsys):
    assert batch([line("a")], "--json")[0] == DONE
    out, err = capsys.readouterr()
    assert [json.loads(text)["custom_id"] for text in out.splitlines()] == ["a"]
    assert "1 of 1 lines answered" in err
    assert batch([line("a"), line("b")], "--quiet")[0] == DONE
    assert capsys.readouterr() == ("", "")


def test_what_is_half_written_is_mended_and_drawn_again(batch, tmp_path):
    results = tmp_path / "out" / "results.jsonl"
    batch([line("a"), line("b")])
    whole = results.read_bytes()
    results.write_bytes(whole[:-20])
    status, answers, _ = batch([line("a"), line("b")])
    assert (status, sorted(one["custom_id"] for one in answers)) == (DONE, ["a", "b"])
    assert {event for event, _ in made(tmp_path / "out")} == {"made"}, "its record was found, and not made twice"
    assert len(made(tmp_path / "out")) == 2


def test_a_folder_in_use_or_of_another_kind_is_refused(batch, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with Ledger.opened(tmp_path / "out"):
        assert batch([line("a")])[0] == USER_ERROR
    assert "another batch is writing to" in capsys.readouterr().err
    (tmp_path / "out" / "results.jsonl").write_text('{"mine": 1}\n')
    assert run(["batch", *batch([line("a")], "--words")]) == USER_ERROR
    assert "no file of a batch's answers" in capsys.readouterr().err


def test_a_file_without_lines_is_refused(batch, capsys):
    assert run(["batch", *batch(["", " "], "--words")]) == USER_ERROR
    assert "holds no request" in capsys.readouterr().err


def test_many_lines_cost_few_bytes(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(line(f"request-{number}") + "\n" for number in range(2000)))
    survey = Survey.of(path)
    held = (survey.numbers, survey.offsets, survey.names, survey.texts, survey.repeats)
    assert sum(array.itemsize for array in held) <= 33, "bytes a line"
    ((read_line, repeats),) = read_lines(path, survey.places([1999]))
    assert (json.loads(read_line.text)["custom_id"], read_line.number, repeats) == ("request-1999", 2000, False)


@pytest.mark.serving
def test_no_answer_is_lost_or_written_twice_by_signals_and_kills(batch, tmp_path):
    """Ended by SIGTERM once, then by SIGKILL at any point, it comes to the same end."""
    count, results, ended = 24, tmp_path / "out" / "results.jsonl", []
    words = batch([line(f"request-{number}", n=1 + number % 2) for number in range(count)], "--words")
    for signalled in (signal.SIGTERM, signal.SIGKILL, None):
        before = lines_in(results)
        process = subprocess.Popen([sys.executable, "-m", "twig", "batch", *words, "--quiet"], env=os.environ)
        while signalled and process.poll() is None and lines_in(results) < before + 3:
            time.sleep(0.01)
        if signalled:
            process.send_signal(signalled)
        ended.append(process.wait())
    assert ended == [TERMINATED, -signal.SIGKILL, DONE]
    answers = read(results)
    assert sorted(one["custom_id"] for one in answers) == sorted(f"request-{number}" for number in range(count))
    records = [image["twig"]["record"] for one in answers for image in one["response"]["body"]["data"]]
    manifests = {path.stem for path in (tmp_path / "out").glob("twig-*.json")}
    assert len(records) == len(set(records)) == count * 3 // 2
    assert manifests == set(records), "no record is without an answer, none was written twice"
    assert {path.stem for path in (tmp_path / "out").glob("twig-*.png")} == set(records)
    assert run(["audit", "verify", str(tmp_path / "out" / "audit.jsonl")]) == DONE


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0
