import json

import pytest

from twig.benchmarks.gpu import running
from twig.benchmarks.gpu.running import Recorder, done, ends, read_rows, run_part, run_parts
from twig.benchmarks.gpu.verdict import failures


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


@pytest.fixture
def parts(monkeypatch):
    """Parts that say what they are told; an exception is raised in its turn."""
    told: dict[str, list] = {}

    def measure(name, bench):
        for each in told[name]:
            if isinstance(each, Exception):
                raise each
            yield each

    monkeypatch.setattr(running, "measure", measure)
    return told


def test_a_part_that_raises_ends_alone_and_keeps_its_rows(bench, path, parts):
    parts |= {"machine": [{"measure": "x", "n": 1}, ValueError("no such thing")], "speed": [{"measure": "y"}]}
    run_parts(bench, ["machine", "speed"], path, 100)
    rows = read_rows(path)
    assert [row["measure"] for row in rows] == ["part", "x", "part", "part", "y", "part"]
    ended = ends(rows)
    assert ended["machine"]["status"] == "failed"
    assert "no such thing" in ended["machine"]["why"]
    assert done(path) == {"speed"}
    assert failures(rows, ["machine", "speed", "jobs"]) == [
        "machine: failed, ValueError: no such thing", "jobs: it was not run, for want of time"
    ]  # fmt: skip


def test_rows_of_an_earlier_run_of_a_part_no_longer_count(bench, path, parts):
    parts["machine"] = [{"measure": "x", "n": 1, "ok": False}]
    run_part(bench, "machine", path)
    parts["machine"] = [{"measure": "x", "n": 2, "ok": True}]
    run_part(bench, "machine", path)
    assert [row["n"] for row in read_rows(path) if row["measure"] == "x"] == [2]
    assert not failures(read_rows(path), ["machine"])
    assert len(path.read_text().splitlines()) == 6
    assert json.loads(path.read_text().splitlines()[0])["environment"]["cores"]


def test_nothing_begins_without_time_left(bench, path, parts):
    parts["machine"] = [{"measure": "x"}]
    run_parts(bench, ["machine"], path, 1)
    assert not path.exists()


def test_of_a_process_that_died_its_part_is_named_and_the_others_are_left(path):
    Recorder(path, "machine", 5.0).end("begun")
    Recorder(path, "machine", 5.0).end("done")
    Recorder(path, "speed", 6.0).end("begun")
    left = running._left(["machine", "speed", "jobs"], path, since=4.0, status=-11)
    assert left == ["jobs"]
    assert ends(read_rows(path))["speed"]["status"] == "died"
    assert "-11" in failures(read_rows(path), ["machine", "speed"])[0]


def test_a_part_that_takes_too_long_ends_its_process(path, monkeypatch):
    statuses = []
    monkeypatch.setattr(running.os, "_exit", statuses.append)
    recorder = Recorder(path, "machine")
    recorder.write({"measure": "x"})
    running._give_up(recorder)
    assert statuses == [running.OVERDUE]
    assert [row["measure"] for row in read_rows(path)] == ["x", "part"]
    assert not done(path)
