"""What somebody does to an audit log, and what is found of it."""

import json

import pytest

from chained_logs import found, lines
from twig.engine.api.errors import InvalidRequestError, RecordError
from twig.engine.records.audit import AuditLog, parse_head
from twig.engine.records.chain import linked, parsed, written
from twig.engine.records.secret import Secret
from twig.engine.records.stores import Query


def test_a_log_as_it_was_written_is_whole(log):
    assert found(log) == []
    assert AuditLog(log).verify().lines == 9


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
