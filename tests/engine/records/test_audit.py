import hashlib
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.errors import InvalidRequestError, RecordError
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Verdict
from twig.engine.records.audit import AuditLog, Event, parse_head
from twig.engine.records.chain import linked, parsed, written
from twig.engine.records.manifest import Manifest
from twig.engine.records.pictures import sheet_png
from twig.engine.records.secret import Secret
from twig.engine.records.stores import Query


@pytest.fixture
def write(tmp_path, make_result, model):
    """Append the line of a result to a log and return the log's path; the manifest is new each time."""
    made = []

    def append(result=None, **options) -> Path:
        path = tmp_path / f"twig-{len(made):032x}-0.json"
        made.append(path)
        Manifest.of(result or make_result(), model, image="a.png").save(path)
        log = AuditLog(tmp_path / "audit.jsonl", **options)
        log.append(Manifest.load(path), path)
        return log.path

    return append


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def found(path: Path, **options) -> list[str]:
    return [str(finding) for finding in AuditLog(path).verify(**options).findings]


@pytest.fixture
def log(write):
    """A log of nine whole lines."""
    for _ in range(8):
        write()
    return write()


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


def test_a_log_as_it_was_written_is_whole(log):
    assert found(log) == []
    assert AuditLog(log).verify().lines == 9


# --- what is done to a log ---


def edit(texts, number, **changes):
    return [written(parsed(t) | changes) if i == number - 1 else t for i, t in enumerate(texts)]


def rechained(texts, number, **changes):
    """Edit a line and write its digest anew, and of all that follow."""
    forged = []
    for i, text in enumerate(texts, start=1):
        line = parsed(text)
        body = {k: v for k, v in line.items() if k not in ("number", "previous", "digest", "salt", "erasable_sha256")}
        line = linked(body | (changes if i == number else {}), i, forged[-1]["digest"]) if i >= number else line
        forged.append(line)
    return [written(line) for line in forged]


def swapped(texts, first, second):
    texts[first - 1], texts[second - 1] = texts[second - 1], texts[first - 1]
    return texts


DONE_TO_IT = {
    "edited": (lambda t: edit(t, 4, verdict="refused"), ["line 4 was edited"]),
    "edited first": (lambda t: edit(t, 1, verdict="refused"), ["line 1 was edited"]),
    "edited last": (lambda t: edit(t, 9, verdict="refused"), ["line 9 was edited"]),
    "its prompt edited": (lambda t: edit(t, 4, prompt_hmac="0" * 64), ["line 4 was edited in its erasable part"]),
    "its link edited": (lambda t: edit(t, 4, previous="0" * 64), ["line 4 was edited"]),
    "a key written twice": (
        lambda t: [t[0].replace('"verdict"', '"verdict":"refused","verdict"'), *t[1:]],
        ["line 1 was edited"],
    ),
    "edited, its digest made anew": (
        lambda t: t[:3] + rechained(t[:4], 4, verdict="refused")[3:] + t[4:],
        ["line 4 was edited or replaced: it is not the line that line 5 follows"],
    ),
    "edited, all digests made anew": (
        lambda t: rechained(t, 4, verdict="refused"),
        ["line 9 is not the one of its head: it was replaced, or the chain was written anew"],
    ),
    "deleted": (lambda t: t[:3] + t[4:], ["line 4 is missing: it was deleted"]),
    "several deleted": (lambda t: t[:3] + t[6:], ["line 4 to line 6 is missing: it was deleted"]),
    "first deleted": (lambda t: t[1:], ["line 1 is missing: it was deleted"]),
    "inserted": (
        lambda t: [*t[:4], written(linked({"event": "made"}, 5, parsed(t[3])["digest"])), *t[4:]],
        ["line 5 was inserted beside the true one (in place 5)"],
    ),
    "something inserted": (
        lambda t: [*t[:4], "{}", *t[4:]],
        ["line 5 is no line of the log: it was edited, or a crash cut it short"],
    ),
    "inserted before all": (
        lambda t: ["{}", *t],
        ["the log had 0 lines before its chain and has 1: some were inserted"],
    ),
    "doubled": (lambda t: [*t[:4], t[3], *t[4:]], ["line 4 is there twice (in place 5)"]),
    "doubled at the end": (lambda t: [*t, t[3]], ["line 4 is there twice (in place 10)"]),
    "swapped": (lambda t: swapped(t, 4, 5), ["line 4 is out of order (in place 5)"]),
    "cut off": (lambda t: t[:7], ["line 8 to line 9 was cut off: its head is line 9"]),
    "last cut off": (lambda t: t[:8], ["line 9 was cut off: its head is line 9"]),
    "all cut off": (lambda t: [], ["line 1 to line 9 was cut off: its head is line 9"]),
    "erased behind the log's back": (
        lambda t: [t[0], written({k: v for k, v in parsed(t[1]).items() if k in KEPT}), *t[2:]],
        ["line 2 was erased, and no line says so"],
    ),
}  # fmt: skip
KEPT = {
    "number", "previous", "time", "event", "verdict", "model_sha256", "scores", "rule", "reasons", "gate", "registry",
    "nearest", "calibration", "erasable_sha256", "digest",
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), DONE_TO_IT.values(), ids=DONE_TO_IT)
def test_what_was_done_to_a_log_is_found_and_named(log, change, told):
    changed = change(log.read_text().splitlines())
    log.write_text("".join(line + "\n" for line in changed))
    assert found(log, manifests=False) == told


@pytest.mark.parametrize(
    "name", ["cut off", "last cut off", "all cut off", "edited last", "edited, all digests made anew"]
)
def test_nothing_is_added_to_a_log_whose_end_was_altered(log, name):
    log.write_text("".join(line + "\n" for line in DONE_TO_IT[name][0](log.read_text().splitlines())))
    before = log.read_bytes()
    with pytest.raises(RecordError, match=r"audit\.jsonl .*twig audit verify"):
        AuditLog(log).check()
    assert log.read_bytes() == before


def test_a_head_without_its_log_and_a_log_without_its_head_are_refused(log):
    head = log.with_suffix(".head")
    kept = head.read_bytes()
    head.unlink()
    assert found(log) == ["the log has lost its head: whether its end was cut off cannot be told"]
    with pytest.raises(RecordError, match="has no head"):
        AuditLog(log).check()
    head.write_bytes(kept)
    log.unlink()
    with pytest.raises(RecordError, match="its end was cut off"):
        AuditLog(log).check()


def test_a_forged_head_is_found(log):
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:7]))
    head = json.loads(log.with_suffix(".head").read_text())
    log.with_suffix(".head").write_text(json.dumps(head | {"number": 7, "digest": lines(log)[-1]["digest"]}))
    assert found(log, manifests=False) == ["the log has a head that was altered: it proves nothing here"]
    with pytest.raises(RecordError, match="head that was altered"):
        AuditLog(log).check()


def test_a_head_kept_elsewhere_finds_a_log_cut_off_with_its_head(log, write):
    old = log.read_bytes(), log.with_suffix(".head").read_bytes()
    kept = str(AuditLog(write()).head())
    log.write_bytes(old[0])
    log.with_suffix(".head").write_bytes(old[1])
    assert found(log, manifests=False) == []
    told = found(log, kept=parse_head(kept), manifests=False)
    assert told == ["line 10 was cut off: the head that was kept is line 10"]
    with pytest.raises(InvalidRequestError, match='got "ten"'):
        parse_head("ten")


def test_another_installation_adds_nothing_to_a_log_and_finds_that_its_head_proves_nothing(log, tmp_path):
    other = AuditLog(log, secret=Secret.load(tmp_path / "other"))
    with pytest.raises(RecordError, match="another secret than this installation's"):
        other.check()
    assert "sealed with another installation's secret" in str(other.verify().findings[0])


def test_an_altered_and_a_missing_manifest_are_named(log, tmp_path):
    names = [line["manifest"] for line in lines(log)]
    (tmp_path / names[2]).unlink()
    (tmp_path / names[4]).write_text((tmp_path / names[4]).read_text().replace("accepted", "refused"))
    assert found(log) == [
        f'line 3 names a manifest that is not there: "{names[2]}"',
        f'line 5 names a manifest that was altered since: "{names[4]}"',
    ]


# --- crashes, and logs from before ---


@pytest.mark.parametrize("torn", ["{", '{"number":10,"prev', '{"number":10,"previous":"ab","event":"ma'])
def test_half_a_line_that_a_crash_left_is_told_and_taken_away(log, write, torn):
    with log.open("a") as file:
        file.write(torn)
    assert found(log) == ["line 10 is no line of the log: it was edited, or a crash cut it short"]
    write()
    assert found(log) == []
    assert [line["number"] for line in lines(log)] == list(range(1, 11))


@pytest.mark.parametrize("behind", [1, 3])
def test_a_head_that_a_crash_left_behind_catches_up(log, write, behind):
    heads = [log.with_suffix(".head").read_bytes()]
    for _ in range(behind):
        write()
        heads.append(log.with_suffix(".head").read_bytes())
    log.with_suffix(".head").write_bytes(heads[0])
    assert found(log) == []
    write()
    assert found(log) == []


def test_the_first_line_may_lack_its_head_for_a_crash_came_between(write):
    write().with_suffix(".head").unlink()
    path = write()
    assert found(path) == []
    assert len(lines(path)) == 2


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_log_from_before_the_chain_is_continued_and_held_by_it(write, tmp_path, ending):
    path = tmp_path / "audit.jsonl"
    old = ['{"time":"2026-01-01T00:00:00Z","verdict":"accepted"}', '{"time":"2026-01-02T00:00:00Z"}']
    path.write_text("\n".join(old) + ending)
    write()
    write()
    assert path.read_text().splitlines()[:2] == old
    assert [line.get("number") for line in lines(path)] == [None, None, 3, 4]
    verified = AuditLog(path).verify()
    assert (verified.before, verified.lines, verified.findings) == (2, 2, ())
    path.write_text(path.read_text().replace("2026-01-01", "2025-01-01"))
    assert "is not what it was before its chain began" in found(path)[0]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert "line 2 is missing" in " ".join(found(path))


# --- finding and forgetting ---


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


def test_a_line_that_was_to_be_forgotten_and_is_there_is_found(log):
    whole = log.read_text().splitlines()
    AuditLog(log).forget(Query(numbers=frozenset({2})))
    after = log.read_text().splitlines()
    log.write_text("".join(text + "\n" for text in [after[0], whole[1], *after[2:]]))
    assert found(log, manifests=False) == ["line 2 was to be forgotten, as line 10 says, and was not erased"]


def test_an_altered_line_makes_nobody_remove_a_file_of_another_kind(log, tmp_path):
    (tmp_path / "twig-precious.json").write_text("precious")
    texts = edit(log.read_text().splitlines(), 2, manifest="twig-precious.json")
    log.write_text("".join(text + "\n" for text in texts))
    AuditLog(log).forget(Query(numbers=frozenset({2})))
    assert (tmp_path / "twig-precious.json").exists()


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
