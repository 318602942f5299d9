"""What every store promises, on a file, on SQLite and on a PostgreSQL server that is started for it."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from twig.engine.api.errors import RecordError
from twig.engine.records.audit import AuditLog
from twig.engine.records.chain import BEGINNING, parsed
from twig.engine.records.manifest import Manifest
from twig.engine.records.secret import Secret
from twig.engine.records.stores import JsonlStore, Query, open_store

PROCESSES, EACH = 4, 25


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    return Secret.load(tmp_path_factory.mktemp("secret") / "secret")


def append_some(place, secret, process):
    store = open_store(place, secret)
    for number in range(EACH):
        store.append({"event": "made", "prompt": f"{process}-{number}"})


def test_processes_that_append_to_one_log_never_fork_its_chain(place, secret):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_some, args=(place, secret, i)) for i in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    log = AuditLog(place, secret=secret)
    assert log.verify().findings == ()
    lines = list(log.store.find(Query()))
    assert [line["number"] for line in lines] == list(range(1, PROCESSES * EACH + 1))
    assert [line["previous"] for line in lines] == [BEGINNING, *(line["digest"] for line in lines[:-1])]
    assert {line["prompt"] for line in lines} == {f"{i}-{n}" for i in range(PROCESSES) for n in range(EACH)}
    assert log.head().number == PROCESSES * EACH


def test_a_check_writes_no_line(place, secret):
    store = open_store(place, secret)
    store.check()
    assert store.head() is None
    store.append({"event": "made"})
    store.check()
    assert [line["number"] for line in store.find(Query())] == [1]


def test_a_log_is_found_forgotten_and_verified_wherever_it_is_kept(place, secret, tmp_path, make_result, model):
    log = AuditLog(place, prompts=True, secret=secret, root=tmp_path)
    for i, prompt in enumerate(("a red star", 'a "blue" house_%', "a moon")):
        path = tmp_path / f"twig-{i:032x}-0.json"
        Manifest.of(make_result(prompt), model).save(path)
        log.append(Manifest.load(path), path)
    (found,) = log.search(Query(prompt_hmac=log.prompt_hmac('a "blue" house_%')))
    assert (found.number, found.prompt, found.manifest) == (
        2,
        'a "blue" house_%',
        path.with_stem(f"twig-{1:032x}-0").name,
    )
    assert log.names(path)
    assert [record.number for record in log.search(Query(model=model.sha256[:8], verdict="accepted"))] == [1, 2, 3]
    done = log.forget(Query(numbers=frozenset({2})), "asked for it")
    assert done.numbers == (2,)
    assert not any("house" in text.decode() for text in log.store.texts())
    verified = log.verify()
    assert verified.findings == ()
    assert (verified.lines, verified.erased) == (4, (2,))


def test_a_secret_of_another_installation_is_refused_wherever_the_log_is(place, secret, tmp_path):
    open_store(place, secret).append({"event": "made"})
    with pytest.raises(RecordError, match="another secret than this installation's"):
        open_store(place, Secret.load(tmp_path / "other")).append({"event": "made"})


@pytest.fixture
def database(place, secret):
    """A log of five lines in a database, and a function that runs SQL in it."""
    import sqlalchemy

    store = open_store(place, secret)
    for number in range(5):
        store.append({"event": "made", "prompt": str(number)})
    engine = sqlalchemy.create_engine(place.replace("postgresql:", "postgresql+psycopg:"))

    def run(statement):
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)

    yield AuditLog(place, secret=secret), run
    engine.dispose()


DATABASES = pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)


@DATABASES
@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE twig_audit_lines SET text = replace(text, 'made', 'sold') WHERE number = 3", "line 3 was edited"),
        ("DELETE FROM twig_audit_lines WHERE number = 3", "line 3 is missing: it was deleted"),
        ("DELETE FROM twig_audit_lines WHERE number = 5", "line 5 was cut off: its head is line 5"),
        ("UPDATE twig_audit_lines SET number = 9 WHERE number = 2", "line 2 is out of order (in place 5)"),
        ("DELETE FROM twig_audit_head", "the log has lost its head: whether its end was cut off cannot be told"),
        ("UPDATE twig_audit_head SET number = 4", "the log has a head that was altered: it proves nothing here"),
    ],
)
def test_what_is_done_to_a_database_is_found(database, statement, told):
    log, run = database
    run(statement)
    assert told in [str(finding) for finding in log.verify().findings]


@DATABASES
def test_two_lines_after_one_are_refused_by_the_table(database):
    from sqlalchemy.exc import IntegrityError

    _, run = database
    with pytest.raises(IntegrityError):
        run("INSERT INTO twig_audit_lines SELECT 6, previous, text FROM twig_audit_lines WHERE number = 5")


def test_sqlites_file_is_its_owners_and_never_reached_through_a_link(tmp_path, secret):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    old = os.umask(0o022)
    try:
        open_store(f"sqlite:///{tmp_path}/audit.db", secret).append({"event": "made"})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "audit.db").stat().st_mode) == 0o600
    (tmp_path / "link.db").symlink_to(tmp_path / "audit.db")
    with pytest.raises(RecordError, match="is a link"):
        open_store(f"sqlite:///{tmp_path}/link.db", secret).check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://twig:hush@somewhere", 'no audit log can be kept at "nonsense"://...: write sqlite:///FILE or'),
        ("postgresql://twig:hu/sh@hush:hush/none", 'no audit log can be kept at "postgresql"'),
        ("mysql://twig:hush@127.0.0.1/none", "no audit log can be kept at"),
        ("postgresql://twig@127.0.0.1:1/none?password=hush&sslpassword=hush", "cannot be used"),
        ("postgresql://twig:hush@127.0.0.1:1/none", "cannot be used"),
    ],
)
def test_a_database_that_is_not_there_is_one_clear_error_without_its_password(secret, url, message):
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(RecordError, match=message) as error:
        open_store(url, secret).check()
    assert "hush" not in str(error.value)


def test_a_long_log_is_appended_to_without_being_read(tmp_path, secret, monkeypatch):
    store = JsonlStore(tmp_path / "audit.jsonl", secret)
    for _ in range(3):
        store.append({"event": "made", "reason": "x" * 200_000})
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: read.append(size) or pread(file, size, place))
    monkeypatch.setattr(Path, "read_bytes", None)
    line = store.append({"event": "made"})
    assert line["number"] == 4
    assert sum(read) < 400_000, "of 600,000 bytes, the last line's alone"
    assert parsed(list(store.texts())[3]) == line
