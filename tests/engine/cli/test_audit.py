"""`twig audit` as a user meets it."""

import csv
import io
import json
import shutil
import stat
import sys

import pytest

from twig.engine.cli.main import run
from twig.engine.cli.status import DIFFERS, DONE, USER_ERROR

STAR, HOUSE = "a red star", "a blue house"


@pytest.fixture(scope="module")
def generated(tiny_checkpoint, tmp_path_factory):
    """Folder with a picture of each of two prompts."""
    out = tmp_path_factory.mktemp("out")
    assert run(["generate", STAR, HOUSE, "--steps", "1", "--model", str(tiny_checkpoint), "--out", str(out)]) == DONE
    return out


@pytest.fixture
def log(generated, tmp_path):
    """The log of a copy to change."""
    return shutil.copytree(generated, tmp_path / "copy") / "audit.jsonl"


def audit(capsys, *words):
    capsys.readouterr()
    code = run(["audit", *map(str, words)])
    return code, capsys.readouterr().out


def test_a_whole_log_is_said_to_be_whole(log, capsys):
    code, out = audit(capsys, "verify", log)
    assert code == DONE
    assert "2 lines, whole" in out


def test_an_edited_line_is_named_and_the_status_says_so(log, capsys):
    log.write_text(log.read_text().replace('"verdict":"accepted"', '"verdict":"refused"', 1))
    code, out = audit(capsys, "verify", log)
    assert code == DIFFERS
    assert "line 1 was edited" in out
    assert "NOT whole: 1 findings" in out


def test_a_head_is_printed_and_a_cut_off_log_held_against_it(log, capsys):
    code, head = audit(capsys, "head", log)
    assert code == DONE
    assert head.startswith("2:")
    assert audit(capsys, "verify", log, "--head", head.strip())[0] == DONE
    assert audit(capsys, "verify", log, "--head", f"3:{'0' * 64}")[0] == DIFFERS
    assert audit(capsys, "verify", log, "--head", "nonsense")[0] == USER_ERROR


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ((), [1, 2]), (("--prompt", HOUSE), [2]), (("--prompt", "a blue"), []), (("--verdict", "accepted"), [1, 2]),
        (("--verdict", "refused"), []), (("--since", "2020-01-01"), [1, 2]), (("--until", "2020-01-01"), []),
        (("--line", "2"), [2]), (("--nearest", "work"), []),
    ],
)  # fmt: skip
def test_lines_are_found(log, capsys, options, numbers):
    code, out = audit(capsys, "search", log, *options)
    assert code == DONE
    assert [int(line.split()[0]) for line in out.splitlines()] == numbers


def test_a_prompt_is_read_from_stdin(log, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{HOUSE}\n".encode())))
    assert audit(capsys, "search", log, "--prompt", "-")[1].startswith("2 ")


def test_an_export_is_the_owners_alone_and_holds_every_line(log, capsys, tmp_path):
    assert audit(capsys, "export", log, "--out", tmp_path / "log.jsonl")[0] == DONE
    assert stat.S_IMODE((tmp_path / "log.jsonl").stat().st_mode) == 0o600
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [1, 2]
    _, out = audit(capsys, "export", log, "--format", "csv", "--prompt", HOUSE)
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["number"], row["verdict"]) == ("2", "accepted")
    assert json.loads(row["scores"]) == lines[1]["scores"]


def test_a_spreadsheet_runs_nothing_of_a_prompt(tiny_checkpoint, tmp_path, capsys):
    options = ["--steps", "1", "--model", str(tiny_checkpoint), "--out", str(tmp_path), "--log-prompts"]
    assert run(["generate", "=1+1", *options]) == DONE
    _, out = audit(capsys, "export", tmp_path / "audit.jsonl", "--format", "csv")
    assert next(csv.DictReader(io.StringIO(out)))["prompt"] == "'=1+1"


def test_what_is_forgotten_is_gone_and_the_log_is_whole(log, capsys):
    before = {path.name for path in log.parent.iterdir()}
    code, out = audit(capsys, "forget", log, "--prompt", HOUSE, "--dry-run")
    assert (code, out.count("\n")) == (DONE, 1)
    assert {path.name for path in log.parent.iterdir()} == before
    code, out = audit(capsys, "forget", log, "--prompt", HOUSE, "--reason", "asked")
    assert code == DONE
    assert "erased        line 2, which line 3 says" in out
    assert out.count("removed") == 3, "manifest, picture, contact sheet"
    assert len(list(log.parent.iterdir())) == len(before) - 3
    code, out = audit(capsys, "verify", log)
    assert code == DONE, out
    assert "erased        line 2, as the log says" in out
    assert HOUSE not in "".join(path.read_text() for path in log.parent.glob("*.json"))
    assert audit(capsys, "forget", log)[0] == USER_ERROR, "everything is not forgotten by leaving an option out"
    assert "nothing that could be erased" in audit(capsys, "forget", log, "--line", "2")[1]


def test_a_log_that_is_not_there_is_a_users_mistake(tmp_path, capsys):
    for command in ("verify", "search", "export", "head"):
        assert audit(capsys, command, tmp_path / "none.jsonl")[0] == USER_ERROR


def test_a_log_in_a_database_that_is_not_there_is_a_users_mistake(tmp_path, capsys):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    assert audit(capsys, "verify", f"sqlite:///{tmp_path}/none.db")[0] == USER_ERROR
    assert not list(tmp_path.iterdir())
