"""The command line as scripts use it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress

from twig.engine.cli import actions
from twig.engine.cli.actions import engines
from twig.engine.cli.main import run
from twig.engine.cli.progress import StageBars
from twig.engine.cli.status import BROKEN_PIPE, DIFFERS, DONE, MEANINGS, REFUSED, TERMINATED, UNEXPECTED, USER_ERROR

REFUSE = "refuse if ssim > -1"


@pytest.fixture
def generate(tiny_checkpoint, tmp_path, capsys):
    """Return a function that draws with these words and returns status, stdout and stderr."""

    def call(*words):
        options = ["--steps", "1", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "out")]
        status = run(["generate", *options, *words])
        return status, *capsys.readouterr()

    return call


def objects(out):
    return [json.loads(line) for line in out.splitlines()]


def test_json_is_an_object_a_picture_and_all_else_is_on_stderr(generate, tmp_path):
    status, out, err = generate("a star", "a moon", "--seed", "1..2", "--json", "--rule", REFUSE, "--explain")
    assert status == DONE
    found = objects(out)
    assert sorted((one["prompt"], one["seed"]) for one in found) == [
        ("a moon", 1), ("a moon", 2), ("a star", 1), ("a star", 2),
    ]  # fmt: skip
    for one in found:
        assert (one["verdict"], one["preset"], one["index"]) == ("refused", "default", 0)
        assert one["why"].startswith("too close to its draft: ssim ")
        assert one["why"].endswith(one["crossed"][0]["text"])
        assert [one["crossed"][0][key] for key in ("name", "operator", "limit")] == ["ssim", ">", -1.0]
        assert next(iter(one["scores"])) == "ssim", "what was crossed comes first"
        assert one["scores"]["phash"]["limit"] is None
        for file in ("picture", "manifest", "sheet", "explanation"):
            assert os.path.exists(one[file]), file
    assert len({one["sheet"] for one in found}) == 1, "a call has one"
    assert len(list((tmp_path / "out").glob("*-sheet.png"))) == 1
    assert "contact sheet" in err
    assert "heartbeat" not in err


def test_what_is_no_number_is_null_in_json(generate):
    _, out, _ = generate("a star", "--guidance", "1", "--gate", "--json")
    (one,) = objects(out)
    assert one["gate"]["signals"]["guidance"]["value"] is None


def test_text_says_first_what_was_crossed_and_names_the_explanation(generate, tmp_path):
    _, out, _ = generate("a star", "--rule", f"{REFUSE} or tile_l2 < 0", "--explain")
    (line,) = (line for line in out.splitlines() if line.startswith("picture"))
    said = line.split("-refused.png  ")[1]
    assert said.startswith("refused, too close to its draft: ssim ")
    assert "; kept tile_l2 " in said
    assert "phash" not in line, "what has no limit is in the manifest"
    (named,) = (line.split()[1] for line in out.splitlines() if line.startswith("explanation"))
    assert os.path.exists(named)


def test_quiet_says_nothing(generate, tmp_path):
    assert generate("a star", "--quiet") == (DONE, "", "")
    assert len(list((tmp_path / "out").glob("*-sheet.png"))) == 1
    status, out, err = generate("a star", "--quiet", "--json")
    assert (status, len(objects(out)), err) == (DONE, 1, "")


def test_prompts_come_from_stdin(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a star\n\na moon\n")))
    _, out, _ = generate("--prompts", "-", "--json")
    assert {one["prompt"] for one in objects(out)} == {"a star", "a moon"}


def test_a_refused_picture_fails_a_script_that_asks_for_it(generate):
    assert generate("a star", "--rule", REFUSE)[0] == DONE
    assert generate("a star", "--rule", REFUSE, "--fail-on-refused")[0] == REFUSED
    assert generate("a star", "--rule", "review if ssim > -1", "--fail-on-refused")[0] == DONE


def test_a_size_beyond_the_limit_is_drawn_where_it_is_raised(generate):
    assert generate("a star", "--limit-pixels", "4095")[0] == USER_ERROR
    assert generate("a star", "--limit-pixels", "4096")[0] == DONE


@pytest.fixture
def no_engine(monkeypatch):
    """Nothing may be loaded."""

    def refuse(*_given, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(engines.Engine, "from_pretrained", refuse)
    actions.add_works  # noqa: B018 - imports the module whose name is changed next
    monkeypatch.setattr(sys.modules["twig.engine.cli.actions.registering"], "load", refuse)


@pytest.mark.parametrize(
    "line",
    [
        "generate star --out {file}",
        "generate star --out {file}/below",
        "calibrate --captions {file} --out {file}/below.json",
        "calibrate --captions {file} --out {folder}",
        "assess --prompts {file} --sources {folder} --out {file}",
        "registry add {folder} --registry {file}/below",
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_a_model_loads(no_engine, tmp_path, capsys, line):
    (tmp_path / "file").write_text("a star")
    words = line.format(file=tmp_path / "file", folder=tmp_path).split()
    assert run(words) == USER_ERROR
    err = capsys.readouterr().err
    assert err.startswith(f"twig: {tmp_path}")
    assert (tmp_path / "file").read_text() == "a star"


def picture(path, tone):
    Image.fromarray(np.full((64, 64, 3), tone, np.uint8)).save(path)


def test_a_bad_picture_of_a_folder_is_named_and_passed_over(tiny_checkpoint, tmp_path, capsys):
    works, file = tmp_path / "works", tmp_path / "works.safetensors"
    works.mkdir()
    picture(works / "a.png", 10)
    (works / "b.png").write_bytes(b"no picture")
    picture(works / "c.png", 200)
    add = ["registry", "add", str(works), "--registry", str(file), "--model", str(tiny_checkpoint)]
    assert run(add) == DIFFERS
    said = capsys.readouterr()
    assert said.out.startswith("2 works added, 2 in ")
    assert said.err.startswith(f"twig: passed over: {works / 'b.png'} is no picture")
    assert run(["registry", "list", "--registry", str(file), "--json"]) == DONE
    listed = json.loads(capsys.readouterr().out)
    assert [work["name"] for work in listed["works"]] == ["a.png", "c.png"]
    check = ["registry", "check", str(works / "c.png"), "--registry", str(file), "--model", str(tiny_checkpoint)]
    assert run([*check, "--json"]) == DONE
    near = json.loads(capsys.readouterr().out)
    assert near["nearest"] in {work["id"] for work in listed["works"]}
    assert "registry_ssim" in near["scores"]
    (works / "b.png").unlink()
    assert run(add) == DONE


def test_a_folder_without_a_readable_picture_makes_no_registry(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "b.png").write_bytes(b"no picture")
    file = tmp_path / "works.safetensors"
    add = ["registry", "add", str(tmp_path / "b.png"), "--registry", str(file), "--model", str(tiny_checkpoint)]
    assert run(add) == USER_ERROR
    assert "none of 1 files is a picture" in capsys.readouterr().err
    assert not file.exists()


def test_inspect_speaks_json(generate, tmp_path, capsys):
    _, out, _ = generate("a star", "--json", "--rule", REFUSE)
    (one,) = objects(out)
    assert run(["inspect", one["manifest"], "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert told["manifest"]["request"]["prompt"] == "a star"
    assert told["why"] == one["why"]
    assert {name: check["wrong"] for name, check in told["checks"].items()} == {"picture": False, "audit_log": False}
    Image.new("RGB", (64, 64)).save(one["picture"])
    assert run(["inspect", one["manifest"], "--json", "--replay"]) == DIFFERS
    told = json.loads(capsys.readouterr().out)
    assert told["checks"]["picture"]["wrong"]
    assert told["checks"]["replay"]["wrong"]


def test_calibrate_speaks_json_or_not_at_all(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("a star\na moon\n")
    words = ["calibrate", "--captions", str(tmp_path / "captions.txt"), "--per-caption", "1", "--steps", "1"]
    words += ["--model", str(tiny_checkpoint), "--out", str(tmp_path / "found.json")]
    assert run([*words, "--json", "--quiet"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert told["written"] == str(tmp_path / "found.json")
    assert told["limits"].keys() >= {"tile_l2"}
    assert run([*words, "--quiet"]) == DONE
    assert capsys.readouterr() == ("", "")


def test_sigterm_keeps_what_is_finished(generate, monkeypatch, tmp_path):
    before, show, sent = signal.getsignal(signal.SIGTERM), StageBars.show, []

    def send(bars, event):
        show(bars, event)
        if event.result is not None and not sent:
            sent.append(event)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(StageBars, "show", send)
    status, out, _ = generate("a star", "--seed", "1..40", "--steps", "3", "--json")
    assert status == TERMINATED
    assert 1 <= len(objects(out)) < 40
    assert all(os.path.exists(one["picture"]) for one in objects(out))
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nobody_thought_of_is_one_line_and_the_traceback_is_shown_on_request(monkeypatch, capsys):
    def fail(*_given, **_options):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(actions, "generate", fail, raising=False)
    assert run(["generate", "a star"]) == UNEXPECTED
    err = capsys.readouterr().err
    assert err == "twig: an error of Twig's own, ZeroDivisionError: by nothing; --debug shows where\n"
    assert run(["generate", "a star", "--debug"]) == UNEXPECTED
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in fail" in err


def test_assess_speaks_json_or_not_at_all(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "works").mkdir()
    picture(tmp_path / "works/a.png", 10)
    (tmp_path / "prompts.txt").write_text("a star\n")
    words = ["assess", "--prompts", str(tmp_path / "prompts.txt"), "--sources", str(tmp_path / "works"), "--seeds", "1"]
    words += ["--presets", "off", "--steps", "1", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "report")]
    assert run([*words, "--json", "--quiet"]) == DONE
    told = capsys.readouterr()
    (one,) = objects(told.out)
    assert told.err == ""
    assert os.path.exists(one["report"])
    assert os.path.exists(one["rows"])
    assert (one["finished"], one["recommended"]) == (True, None)
    assert [preset["name"] for preset in one["presets"]] == ["off"]
    assert run([*words, "--quiet"]) == DONE
    assert capsys.readouterr() == ("", "")


def test_sigterm_ends_a_calibration_and_leaves_nothing(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    before, advance = signal.getsignal(signal.SIGTERM), Progress.advance

    def end(bar, task, count):
        signal.raise_signal(signal.SIGTERM)
        advance(bar, task, count)

    monkeypatch.setattr(Progress, "advance", end)
    (tmp_path / "captions.txt").write_text("a star\n")
    words = ["calibrate", "--captions", str(tmp_path / "captions.txt"), "--steps", "1", "--model", str(tiny_checkpoint)]
    assert run([*words, "--out", str(tmp_path / "new/found.json")]) == TERMINATED
    assert not (tmp_path / "new").exists()
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def twig(*words, **options):
    """The command as a process of its own."""
    return subprocess.run([sys.executable, "-P", "-m", "twig", *words], text=True, timeout=60, **options)


@pytest.mark.parametrize("line", ["--help", "generate --help", "--version", "audit export {log}"])
def test_a_reader_that_stops_early_is_no_error(tmp_path, line):
    (tmp_path / "audit.jsonl").write_text("")
    reading, writing = os.pipe()
    os.close(reading)
    words = line.format(log=tmp_path / "audit.jsonl").split()
    done = twig(*words, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == (DONE if "export" in line else BROKEN_PIPE), "where nothing was written, nothing failed"


def test_a_terminals_colours_can_be_switched_off():
    coloured = {**os.environ, "FORCE_COLOR": "1"}
    coloured.pop("NO_COLOR", None)
    assert "\x1b[1;36m" in twig("generate", "--help", env=coloured, capture_output=True).stdout
    plain = twig("generate", "--help", env=coloured | {"NO_COLOR": "1"}, capture_output=True).stdout
    assert not any(f"\x1b[{style}" in plain for style in ("3", "1;3", "2;3"))


def test_shells_complete_commands_and_options():
    command = f"{sys.executable} -P -m twig --show-completion; true"  # the shell stays, and is asked which it is
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "_TWIG_COMPLETE" in shown.stdout, shown.stderr
    asked = {**os.environ, "_TWIG_COMPLETE": "complete_bash", "COMP_WORDS": "twig gen", "COMP_CWORD": "1"}
    assert twig(env=asked, capture_output=True).stdout.strip() == "generate"


def test_the_readme_lists_every_exit_status_as_help_does():
    readme = (Path(__file__).parents[3] / "engine" / "README.md").read_text()
    table = dict(re.findall(r"^\| (\d+) \| (.+) \|$", readme, re.MULTILINE))
    assert {int(status) for status in table} == MEANINGS.keys()
    for status, meaning in MEANINGS.items():
        assert table[str(status)].replace("`", "").split(";")[0].split(",")[0] == meaning.split(";")[0].split(",")[0]
