"""What every place that keeps jobs promises, in SQLite and in PostgreSQL."""

import threading

import pytest
import sqlalchemy

from twig.engine.api.errors import RecordError, UnreachableError
from twig.engine.serve.jobs.sql import SqlJobs
from twig.engine.serve.jobs.store import Job, Status


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    url = request.getfixturevalue("postgresql")
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS twig_jobs, twig_idempotency")
    engine.dispose()
    return url


@pytest.fixture
def store(url):
    kept = SqlJobs(url)
    kept.check()
    return kept


def job(id, priority=0, created=1.0, tenant="ann"):
    return Job(id, tenant, priority, created, created)


def test_a_job_is_kept_once(store):
    assert store.add(job("a"))
    assert not store.add(job("a", priority=9))
    assert store.find("a") == job("a")
    assert store.find("b") is None
    assert store.waiting() == store.waiting("ann") == 1
    assert store.waiting("bob") == 0


def test_the_highest_priority_and_then_the_oldest_goes_first(store):
    for each in (job("late", created=3.0), job("early", created=2.0), job("high", priority=5, created=4.0)):
        store.add(each)
    taken = [store.take("me", 10.0, 20.0) for _ in range(4)]
    assert [each.id if each else None for each in taken] == ["high", "early", "late", None]
    assert {each.status for each in taken if each} == {Status.RUNNING}
    assert store.waiting() == 0


def test_a_lease_that_ran_out_is_anothers(store):
    store.add(job("a"))
    assert store.take("me", 10.0, 20.0).attempts == 1
    assert store.take("you", 19.0, 29.0) is None
    assert store.renew("me", 30.0) == {"a"}
    assert store.take("you", 25.0, 35.0) is None
    assert store.take("you", 31.0, 41.0).attempts == 2
    assert store.renew("me", 99.0) == frozenset()
    assert not store.finish("a", "me", 200, 32.0), "it is not mine any more"
    assert store.finish("a", "you", 200, 33.0)
    assert not store.finish("a", "you", 500, 34.0)
    assert (store.find("a").status, store.find("a").code) == (Status.DONE, 200)


def test_a_lease_of_a_clock_that_went_back_is_anothers(store):
    store.add(job("a"))
    store.take("me", 5000.0, 5010.0)
    store.claim("k", "print", "me", 5000.0, 5010.0)
    assert store.take("you", 4950.0, 4960.0) is None, "clocks may differ by a few leases"
    assert store.take("me", 1400.0, 1410.0) is None, "nobody takes his own"
    assert store.take("you", 1400.0, 1410.0).id == "a"
    assert store.claim("k", "print", "you", 1400.0, 1410.0) is None


def test_a_file_that_was_deleted_is_missed_and_made_anew(tmp_path):
    store = SqlJobs(f"sqlite:///{tmp_path / 'jobs.db'}")
    store.check()
    store.add(job("a"))
    (tmp_path / "jobs.db").unlink()
    with pytest.raises(UnreachableError, match="are gone"):
        store.add(job("b"))
    assert not (tmp_path / "jobs.db").exists()
    store.check()
    assert store.add(job("b"))


def test_a_released_job_is_queued_as_it_was(store):
    store.add(job("a"))
    store.take("me", 10.0, 20.0)
    store.release("a", "me", 11.0)
    assert (store.find("a").status, store.find("a").attempts) == (Status.QUEUED, 0)


def test_a_job_that_is_called_off_stays_so(store):
    store.add(job("a"))
    store.take("me", 10.0, 20.0)
    assert store.cancel("a", 11.0)
    assert store.renew("me", 30.0) == frozenset()
    assert not store.finish("a", "me", 200, 12.0)
    assert not store.cancel("a", 13.0)
    store.release("a", "me", 14.0)
    assert store.find("a").status is Status.CANCELLED
    assert store.take("you", 100.0, 110.0) is None


def test_a_key_is_taken_by_one_and_answered_for_all(store):
    assert store.claim("k", "print", "me", 10.0, 20.0) is None
    assert store.claim("k", "other", "you", 11.0, 21.0).code is None
    store.renew("me", 30.0, ["k", "strange"])
    assert store.claim("k", "print", "you", 25.0, 35.0).code is None
    assert store.claim("k", "print", "you", 31.0, 41.0) is None, "whose lease ran out is dead"
    store.answer("k", "me", 500, 32.0)
    store.answer("k", "you", 200, 33.0)
    found = store.claim("k", "print", "me", 99.0, 109.0)
    assert (found.fingerprint, found.code) == ("print", 200)
    store.unclaim("k", "you")
    assert store.claim("k", "print", "me", 99.0, 109.0).code == 200, "an answer is not freed"
    assert store.claim("free", "print", "me", 10.0, 20.0) is None
    assert store.claim("free", "print", "me", 11.0, 21.0) is None, "it could not be freed"
    store.unclaim("free", "me")
    assert store.claim("free", "print", "you", 11.0, 21.0) is None


def test_what_ended_long_ago_is_found_and_forgotten(store):
    for each in (job("done"), job("off"), job("new"), job("waits")):
        store.add(each)
    for _ in range(3):
        taken = store.take("me", 5.0, 99.0).id
        if taken == "done":
            store.finish("done", "me", 200, 10.0)
    store.cancel("off", 11.0)
    if store.find("new").status is Status.RUNNING:
        store.finish("new", "me", 200, 50.0)
    store.claim("k", "print", "me", 12.0, 20.0)
    store.answer("k", "me", 200, 12.0)
    assert store.old(20.0, 10) == ["done", "off", "k"]
    assert store.old(20.0, 1) == ["done"]
    store.delete(["done", "off", "k"])
    assert store.old(20.0, 10) == []
    assert store.find("done") is None


def test_no_job_is_taken_twice_by_many(url, store):
    for number in range(24):
        store.add(job(f"j{number}"))
    taken = []

    def take(owner):
        mine = SqlJobs(url)
        while (found := mine.take(owner, 10.0, 20.0)) is not None:
            taken.append(found.id)

    threads = [threading.Thread(target=take, args=[f"owner{number}"]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"j{number}" for number in range(24))


def test_the_file_is_its_owners_alone(tmp_path):
    store = SqlJobs(f"sqlite:///{tmp_path / 'jobs.db'}")
    store.check()
    assert (tmp_path / "jobs.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("url", ["nonsense", "oracle://twig:hush@x", "postgresql://twig:hu/sh@hush:hush/none"])
def test_what_is_no_database_is_refused_without_its_password(url):
    with pytest.raises(RecordError, match="no jobs can be kept") as refused:
        SqlJobs(url)
    assert "hush" not in str(refused.value)


def test_a_password_behind_the_question_mark_is_not_told():
    with pytest.raises(RecordError, match="cannot be used") as refused:
        SqlJobs("postgresql://127.0.0.1:1/none?user=a&password=hush").check()
    assert "hush" not in str(refused.value)


def test_a_database_that_cannot_be_reached_says_so():
    with pytest.raises(RecordError, match="cannot be used"):
        SqlJobs("postgresql://nobody@/nothing?host=/nowhere").check()
