"""Records under attack: a kill at any line of a save, and whatever the command line is given to trip over."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import struct
import sys
import zlib
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from drawn_folders import manifests
from model_folders import edit
from twig.engine.api import writing
from twig.engine.api.result import Verdict
from twig.engine.cli.main import run
from twig.engine.cli.status import DIFFERS, DONE, USER_ERROR
from twig.engine.records import stores
from twig.engine.records.audit import AuditLog
from twig.engine.records.chain import linked, written
from twig.engine.records.manifest import Manifest
from twig.engine.records.output import OutputFolder
from twig.engine.records.stores import Query

pytestmark = pytest.mark.slow

KILLS = 40
RECORDS = Path(stores.__file__).parent
WATCHED = {writing.__file__, *(str(RECORDS / f"{name}.py") for name in ("audit", "stores", "sql", "output", "placing"))}
"""Files whose lines are counted: all that write."""


class Countdown:
    """Kills its own process at the `limit`-th line of the watched files; counts them all without a limit."""

    def __init__(self, limit=None):
        self.limit, self.lines = limit, 0

    def __call__(self, frame, event, _argument):
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.limit:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def save(folder, results, countdown):
    """Save results while the countdown runs."""
    folder.prepare()
    sys.settrace(countdown)
    try:
        for result in results:
            folder.save(result)
    finally:
        sys.settrace(None)


def problems(folder, erased=False):
    """Pictures without a record, lines whose manifest is not that, and what is wrong with the chain."""
    try:
        records = list(folder.log.search(Query()))
    except FileNotFoundError:
        records = []
    found = [str(finding) for finding in folder.log.verify().findings] if records else []
    named = set()
    for record in records:
        if erased and record.manifest is None:
            continue
        path = folder.path / record.manifest
        if hashlib.sha256(path.read_bytes()).hexdigest() != record.manifest_sha256:
            found.append(f"{record.manifest} is not what line {record.number} names")
        named.add(Manifest.load(path).image)
    shown = [path.name for path in folder.path.glob("*.png") if not path.stem.endswith(("-explain", "-sheet"))]
    return found + [f"{name} has no record" for name in shown if name not in named]


@pytest.fixture
def folder(place, tmp_path, model):
    """A folder whose log is kept in each kind of place."""
    return OutputFolder(tmp_path / "out", model, AuditLog(place, root=tmp_path / "out"))


@pytest.mark.timeout(500)
def test_forty_kills_leave_no_picture_without_its_record_and_nothing_half_written(
    folder, make_result, explanation, tmp_path
):
    """Each run begins where a killed one left the folder, and dies some lines later than the one before."""
    kinds = [
        {"explanation": explanation},
        {"verdict": Verdict.REFUSED},
        {"verdict": Verdict.FAILED, "image": None, "error": "NaN"},
    ]

    def results(number):
        base = make_result(**kinds[number % len(kinds)])
        seeds = (number // 2, number)  # the first is often of a run that was killed before
        return [replace(base, request=base.request.model_copy(update={"seed": seed})) for seed in seeds]

    kept = str(folder.log.path).replace("/out/", "/elsewhere/")
    elsewhere = AuditLog(kept if "/elsewhere/" in kept else f"sqlite:///{tmp_path}/elsewhere/audit.db", root=tmp_path)
    counts = []
    for number in range(len(kinds)):
        counts.append(Countdown())
        save(replace(folder, path=tmp_path / "elsewhere", log=elsewhere), results(number + 3), counts[number])
    killed, found = 0, []
    for number in range(KILLS):
        limit = 1 + number * counts[number % len(kinds)].lines // KILLS
        process = multiprocessing.get_context("fork").Process(
            target=save, args=(folder, results(number), Countdown(limit))
        )
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        found += problems(folder)
    assert killed >= KILLS * 3 // 4, "the rest had less to do than the first and ended before"
    assert found == []
    for number in range(KILLS):
        save(folder, results(number), None)
    assert problems(folder) == []
    assert not [path.name for path in folder.path.iterdir() if path.name.startswith(".")]
    wanted = {(number % 3, seed) for number in range(KILLS) if number % 3 < 2 for seed in (number // 2, number)}
    assert len([path for path in folder.path.glob("*.png") if not path.stem.endswith("-explain")]) == len(wanted)


def repeat(folder, result, stop):
    """Save the same result again and again."""
    while not stop.is_set():
        folder.save(result)


@pytest.mark.timeout(300)
def test_what_is_forgotten_while_it_is_made_again_is_gone_or_recorded_anew(folder, make_result):
    """Two processes repeat one run, a third forgets it: no picture without a record, no line without its manifest."""
    folder.prepare()
    result = make_result()
    folder.save(result)
    prompt = Query(prompt_hmac=folder.log.prompt_hmac(result.request.prompt))
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    writers = [context.Process(target=repeat, args=(folder, result, stop)) for _ in range(2)]
    for writer in writers:
        writer.start()
    forgotten = 0
    try:
        while forgotten < 6 and all(writer.is_alive() for writer in writers):
            forgotten += bool(folder.log.forget(prompt).line)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert forgotten == 6
    assert problems(folder, erased=True) == []
    folder.log.forget(prompt)
    assert problems(folder, erased=True) == []
    assert [path.name for path in folder.path.iterdir() if path.name.startswith("twig-")] == []


# --- on the command line ---


def generate(checkpoint, out, *options, prompt="a red star"):
    return run(["generate", prompt, "--steps", "2", "--model", str(checkpoint), "--out", str(out), *map(str, options)])


def test_two_seeds_whose_names_once_met_are_both_kept(tiny_checkpoint, tmp_path):
    for seed in (43945, 128510):
        assert generate(tiny_checkpoint, tmp_path, "--preset", "off", "--seed", seed) == DONE
    seeds = {json.loads(path.read_text())["request"]["seed"] for path in manifests(tmp_path)}
    assert seeds == {43945, 128510}
    assert len(list(tmp_path.glob("twig-*-0.png"))) == 2


@pytest.mark.parametrize("claim", ["as it was", "another", None])
def test_a_stricter_calibration_leaves_both_records(tiny_checkpoint, tmp_path, claim):
    stricter = tmp_path / "calibration.json"
    values = json.loads((tiny_checkpoint / "calibration.json").read_text())
    values = {name: value for name, value in values.items() if name != "version" or claim} | {"limits": {"ssim": -1.0}}
    stricter.write_text(json.dumps(values | ({"version": "another"} if claim == "another" else {})))
    out = tmp_path / "out"
    assert generate(tiny_checkpoint, out, "--retries", "0") == DONE
    assert generate(tiny_checkpoint, out, "--retries", "0", "--calibration", stricter) == DONE
    read = [json.loads(path.read_text()) for path in manifests(out)]
    assert {one["verdict"] for one in read} == {"accepted", "refused"}
    assert len({one["calibration"] for one in read}) == 2
    assert all((out / one["image"]).exists() for one in read)
    assert run(["audit", "verify", str(out / "audit.jsonl")]) == DONE


def test_a_repeat_says_that_it_found_its_record(tiny_checkpoint, tmp_path, capsys):
    assert generate(tiny_checkpoint, tmp_path) == DONE
    assert "recorded already" not in capsys.readouterr().out
    before = {path: path.read_bytes() for path in tmp_path.glob("twig-*-0.*")}
    assert generate(tiny_checkpoint, tmp_path) == DONE
    assert "accepted, recorded already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.glob("twig-*-0.*")} == before
    assert run(["audit", "verify", str(tmp_path / "audit.jsonl")]) == DONE


@pytest.mark.parametrize("name", ["audit.jsonl", "audit.head"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids=["fifo", "link", "dir"]
)
def test_a_log_that_cannot_be_written_is_found_before_anything_is_drawn(tiny_checkpoint, tmp_path, capsys, name, make):
    make(tmp_path / name)
    assert generate(tiny_checkpoint, tmp_path) == USER_ERROR
    captured = capsys.readouterr()
    assert name in captured.err
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture(scope="module")
def explained(tiny_checkpoint, tmp_path_factory):
    """A folder with one explained picture under a rule."""
    out = tmp_path_factory.mktemp("explained")
    old = os.umask(0o022)
    try:
        assert generate(tiny_checkpoint, out, "--explain", "--rule", "review if ssim > 0.99; retry 1") == DONE
    finally:
        os.umask(old)
    return out


def test_what_spells_the_prompt_is_its_owners_alone(explained):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in explained.iterdir()}
    assert {name for name, mode in modes.items() if mode != 0o600} == {
        name for name in modes if name.endswith("-0.png")
    }


ALTERED = {
    "verdict": lambda m: {"verdict": "refused"},
    "rule": lambda m: {"rule": "accept everything"},
    "scores": lambda m: {"attempts": [_scored(m["attempts"][0], 0.01)]},
    "prompt": lambda m: {"request": m["request"] | {"prompt": "a blue house"}},
    "all but the pictures": lambda m: {
        "verdict": "review", "rule": "review if ssim > 0.001; retry 1",
        "attempts": [_scored(m["attempts"][0], 0.5) | {"decision": "review", "reasons": ["ssim > 0.001: it is 0.5"]}],
    },
    "index": lambda m: {"index": 3},
}  # fmt: skip


def _scored(attempt, ssim):
    return attempt | {"scores": attempt["scores"] | {"ssim": attempt["scores"]["ssim"] | {"value": ssim}}}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
@pytest.mark.parametrize("beside", ["with its log", "alone"])
def test_an_altered_manifest_never_replays_as_identical(explained, tmp_path, capsys, change, beside):
    out = shutil.copytree(explained, tmp_path / "copy")
    if beside == "alone":
        (out / "audit.jsonl").unlink()
    (manifest,) = manifests(out)
    edit(manifest, **change(json.loads(manifest.read_text())))
    assert run(["inspect", str(manifest), "--replay"]) in (DIFFERS, USER_ERROR)
    captured = capsys.readouterr()
    assert "NOT identical" in captured.out or captured.err
    refused = change is ALTERED["index"]  # such a manifest cannot be, so none of it is shown
    assert ("ALTERED since" in captured.out) == (beside == "with its log" and not refused)


@pytest.mark.parametrize(
    "do", [Path.unlink, lambda path: Image.new("RGB", (64, 64)).save(path)], ids=["missing", "other"]
)
def test_a_picture_that_is_missing_or_another_is_no_identical_replay(explained, tmp_path, capsys, do):
    out = shutil.copytree(explained, tmp_path / "copy")
    (manifest,) = manifests(out)
    do(manifest.with_suffix(".png"))
    assert run(["inspect", str(manifest), "--replay"]) == DIFFERS
    assert "differs in saved picture" in capsys.readouterr().out


def test_a_manifest_that_the_log_does_not_name_is_no_record(explained, tmp_path, capsys):
    out = shutil.copytree(explained, tmp_path / "copy")
    (manifest,) = manifests(out)
    assert run(["inspect", str(manifest), "--replay"]) == DONE
    forged = shutil.copy(manifest, out / "twig-forged-0.json")
    assert run(["inspect", str(forged)]) == DIFFERS
    assert "does NOT name it" in capsys.readouterr().out


def test_a_signed_picture_is_verified_and_an_altered_one_found(tiny_checkpoint, tmp_path, capsys, signing):
    assert generate(tiny_checkpoint, tmp_path, "--sign", *signing) == DONE
    (manifest,) = manifests(tmp_path)
    assert run(["inspect", str(manifest), "--replay"]) == DONE
    assert 'credentials   valid, signed by "Test signer"' in capsys.readouterr().out
    data = manifest.with_suffix(".png").read_bytes()
    chunk = b"tEXtComment\0somebody drew this"
    added = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    manifest.with_suffix(".png").write_bytes(data[:-12] + added + data[-12:])
    assert run(["inspect", str(manifest)]) == DIFFERS
    out = capsys.readouterr().out
    assert "its pixels are those of the manifest" in out
    assert "credentials   NOT valid" in out


def test_what_cannot_sign_is_found_before_anything_is_drawn(tiny_checkpoint, tmp_path, capsys, signing):
    out = tmp_path / "out"
    assert generate(tiny_checkpoint, out, "--sign", signing[1], signing[0]) == USER_ERROR
    assert "no private key" in capsys.readouterr().err
    assert not out.exists()


# --- a log elsewhere ---


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "file"])
def test_a_log_is_kept_where_it_is_said_to_be(tiny_checkpoint, tmp_path, monkeypatch, capsys, request, kind):
    monkeypatch.chdir(tmp_path)
    if kind != "file":
        pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    log = {"sqlite": "sqlite:///audit.db", "file": "logs/mine.jsonl"}.get(kind) or request.getfixturevalue("postgresql")
    assert generate(tiny_checkpoint, "out", "--log", log) == DONE
    assert not Path("out/audit.jsonl").exists()
    capsys.readouterr()
    assert run(["audit", "verify", log]) == DONE
    assert run(["audit", "search", log, "--prompt", "a red star"]) == DONE
    assert "twig-" in capsys.readouterr().out
    assert run(["audit", "forget", log, "--prompt", "a red star"]) == DONE
    assert not list(Path("out").glob("twig-*"))
    assert run(["audit", "verify", log]) == DONE


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://twig:hush@127.0.0.1:1/none", "postgresql://127.0.0.1:1/none?user=a&password=hush",
        "mysql://twig:hush@127.0.0.1/none", "postgresql://twig:hu@sh:hush@127.0.0.1:port/none", "hush://hush@hush",
        "sqlite:////proc/none/audit.db", "sqlite:///out", "sqlite:///pipe",
    ],
)  # fmt: skip
def test_a_log_that_cannot_be_kept_is_found_before_anything_is_drawn(tmp_path, monkeypatch, capsys, url):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    from twig.engine.cli.actions import generating

    monkeypatch.setattr(generating, "load_engine", None)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("out").mkdir()
    assert run(["generate", "star", "--log", url]) == USER_ERROR
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1
    assert "hush" not in (told.err + told.out).replace("hush://", "").replace('"hush"://', "")
    assert run(["audit", "verify", url]) == USER_ERROR
    told = capsys.readouterr()
    assert "hush" not in (told.err + told.out).replace('"hush"://', "")


def test_a_source_whose_name_is_no_text_is_recorded_by_its_pixels(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (64, 64), "red").save(name)
    assert generate(tiny_checkpoint, "out", "--source", name, "--preset", "off") == DONE
    (manifest,) = manifests(Path("out"))
    assert Manifest.load(manifest).source.path is None
    assert run(["inspect", str(manifest), "--replay", "--source", name]) == DONE


# --- what a log is asked for, and what somebody made of a database ---


@pytest.mark.parametrize(
    "words",
    [
        ("search", "--since", "0001-01-01"), ("search", "--until", "9999-12-31T23:59:59"),
        ("search", "--model", "\udcff"),
        ("search", "--nearest", "\udcff"), ("search", "--verdict", "%"), ("search", "--line", "9" * 40),
        ("search", "--line", "-1"), ("verify", "--head", "9" * 5000 + ":" + "0" * 64),
        ("verify", "--head", "\u0664:" + "0" * 64), ("verify", "--head", "1:" + "\udcff" * 64),
        ("forget", "--line", "1", "--reason", "\udcff"), ("forget", "--line", "1", "--reason", "a\nb"),
        ("forget", "--line", "9" * 40),
    ],
    ids=lambda words: " ".join(words)[:30].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_whatever_a_log_is_asked_for_is_found_or_refused(place, capsys, words):
    log = AuditLog(place)
    for _ in range(2):
        log.store.append({"event": "made", "time": "2026-01-01T00:00:00Z", "verdict": "accepted"})
    verb, *options = words
    status = run(["audit", verb, str(place), *options])
    assert status in (DONE, USER_ERROR)
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == (status == USER_ERROR)
    assert log.verify().findings == ()


def test_a_line_is_found_by_all_that_it_can_be_searched_by(place):
    log = AuditLog(place)
    times = [f"2026-01-0{day}T00:00:0{second}{rest}Z" for day in (1, 2) for second in (0, 1) for rest in ("", ".5")]
    for number, time in enumerate(times):
        model, nearest = f"{number:064x}", "a\u00e9" if number else "b"
        line = {"event": "made", "gate": {"nearest": "other", "verdict": "x"}, "time": time, "verdict": "accepted"}
        log.store.append(line | {"model_sha256": model, "nearest": nearest, "prompt_hmac": f"{number % 2}"})

    def found(**wanted):
        return [line["number"] for line in log.store.find(Query(**wanted))]

    assert found(nearest="other") == []
    assert found(nearest="b") == [1]
    assert found(nearest="a\u00e9", prompt_hmac="1") == [2, 4, 6, 8]
    assert found(model="0" * 63) == list(range(1, 9))
    assert found(model="0" * 63 + "3") == [4]
    assert found(numbers=frozenset({3, 10**30, -1})) == [3]
    zone = datetime.fromisoformat
    assert found(since=zone("2026-01-01T00:00:00.5Z"), until=zone("2026-01-02T00:00:00.5Z")) == [2, 3, 4, 5]
    assert found(since=zone("2026-01-01T02:00:01+02:00"), until=zone("2026-01-02T00:00:00Z")) == [3, 4]


SPOILT = {
    "bytes": "UPDATE twig_audit_lines SET text = x'ff00'",
    "no text": "UPDATE twig_audit_lines SET text = CAST(x'ff00' AS text)",
    "no JSON": "UPDATE twig_audit_lines SET text = 'rubbish'",
    "not a number": """UPDATE twig_audit_lines SET text = '{"number":1,"previous":"","digest":"","a":NaN}'""",
    "beyond a number": """UPDATE twig_audit_lines SET text = '{"number":1,"previous":"","digest":"","a":1e999}'""",
    "deep": "UPDATE twig_audit_lines SET text = printf('%.*c', 100000, '[')",
    "another head": "UPDATE twig_audit_head SET number = 'x'",
    "a head of bytes": "UPDATE twig_audit_head SET digest = x'00ff'",
    "no heads": "DROP TABLE twig_audit_head",
    "no lines": "DROP TABLE twig_audit_lines",
    "another column": "ALTER TABLE twig_audit_lines RENAME COLUMN text TO other",
}


@pytest.mark.parametrize("statement", SPOILT.values(), ids=SPOILT)
def test_a_database_that_somebody_spoilt_is_said_to_be(tmp_path, capsys, statement):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    url = f"sqlite:///{tmp_path}/audit.db"
    AuditLog(url).store.append({"event": "made", "time": "2026-01-01T00:00:00Z", "verdict": "accepted"})
    with closing(sqlite3.connect(tmp_path / "audit.db", isolation_level=None)) as database:
        database.execute(statement)
    assert run(["audit", "verify", url]) in (DIFFERS, USER_ERROR)
    for words in (["search"], ["search", "--verdict", "accepted"], ["head"], ["export"], ["forget", "--line", "1"]):
        capsys.readouterr()
        status = run(["audit", words[0], url, *words[1:]])
        assert status in (DONE, USER_ERROR)
        assert len(capsys.readouterr().err.splitlines()) == (status == USER_ERROR)


@pytest.mark.parametrize("content", [b"", b"rubbish" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused_in_a_line(tmp_path, capsys, content):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    (tmp_path / "audit.db").write_bytes(content)
    for verb in ("verify", "search", "head"):
        assert run(["audit", verb, f"sqlite:///{tmp_path}/audit.db"]) == USER_ERROR
        assert len(capsys.readouterr().err.splitlines()) == 1


LOGS = {
    "empty": b"", "a line of nothing": b"\n", "no text": b"\xff\xfe\n", "no digest": b'{"number":1}\n',
    "not a number": b'{"number":1,"previous":"","digest":"","a":NaN}\n', "deep": b"[" * 10**6,
    "many digits": b'{"number":' + b"9" * 5000 + b',"previous":"","digest":""}\n',
    "odd numbers": b'{"number":-5,"previous":"\\ud800","digest":"x","event":"forgotten","forgotten":[1,true,1e9]}\n',
    "a line without an end": b"x" * (2**26 + 2),
}  # fmt: skip


@pytest.mark.parametrize("content", LOGS.values(), ids=LOGS)
def test_a_log_written_by_anybody_is_read_or_refused(tmp_path, capsys, content):
    log = tmp_path / "audit.jsonl"
    log.write_bytes(content)
    for words in (["verify"], ["search"], ["head"], ["export"], ["forget", "--line", "1"]):
        capsys.readouterr()
        status = run(["audit", words[0], str(log), *words[1:]])
        assert status in (DONE, DIFFERS, USER_ERROR)
        assert len(capsys.readouterr().err.splitlines()) == (status == USER_ERROR)
    assert log.read_bytes().startswith(content), "half a line of a log from before the chain may get its end"


@pytest.mark.parametrize("name", ["twig-1-0.json", "twig-thesis.json"])
def test_a_forged_line_makes_nobody_remove_a_file(tmp_path, name):
    """It is put between true lines by somebody without the secret, and names a file that would be removed with it."""
    log, victim = AuditLog(tmp_path / "out/audit.jsonl"), tmp_path / name
    log.check()
    victim.write_text("mine")
    for _ in range(3):
        log.store.append({"event": "made", "time": "2026-01-01T00:00:00Z", "verdict": "accepted"})
    first, _, third = log.path.read_bytes().splitlines()
    line = linked({"event": "made", "manifest": f"../{name}", "verdict": "accepted"}, 2, json.loads(first)["digest"])
    log.path.write_bytes(b"\n".join([first, written(line).encode(), third, b""]))
    log.forget(Query(numbers=frozenset({2})))
    assert victim.read_text() == "mine"
