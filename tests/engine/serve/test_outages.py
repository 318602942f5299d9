"""What a server depends on and does not have for a while: room on the disk, its database, a storage."""

import os
import resource
import sqlite3
import threading
import time
from contextlib import contextmanager

import boto3
import httpx2
import pytest
import sqlalchemy
from botocore.stub import Stubber
from moto import mock_aws

from servers import running, wait_for
from twig.engine.records import databases
from twig.engine.records.audit import LOG_NAME, AuditLog
from twig.engine.serve import breaker

LOST = (503, "true", "5")
HTTP = httpx2.Client(timeout=60)  # made once, for it takes longer to make than a picture


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Nobody waits long for what is not there."""
    monkeypatch.setattr(databases, "PATIENCE", 0.2)
    monkeypatch.setattr(breaker, "_PAUSE", 0.02)


@pytest.fixture
def another(served_engine, plain_config, tmp_path):
    """Return a function that starts a server over a folder of its own."""

    def start(records=(), **jobs):
        config = plain_config.with_("records", folder=tmp_path / "kept", **dict(records))
        return running(served_engine, config.with_("jobs", **jobs))

    return start


def ask(served, key=None, prompt="a red star", **twig):
    headers = {} if key is None else {"idempotency-key": key}
    body = {"prompt": prompt, "twig": twig}
    return HTTP.post(f"{served.url}/v1/images/generations", json=body, headers=headers)


def refusal(answer):
    return answer.status_code, answer.headers["x-should-retry"], answer.headers.get("retry-after")


def standing(served):
    answer = HTTP.get(f"{served.url}/readyz")
    return answer.status_code, answer.json()


def status(served, id):
    return HTTP.get(f"{served.url}/v1/twig/jobs/{id}").json().get("status")


@contextmanager
def no_room(most=256):
    """No file of this process may grow beyond so many bytes: the system itself refuses, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def locked(path):
    """Another process, as it were, that writes into a database for as long as the block lasts."""
    with sqlite3.connect(path, isolation_level=None, timeout=30) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


def test_on_a_full_disk_nothing_is_shown_or_lost_and_it_goes_on_when_there_is_room(another, served_engine, tmp_path):
    with another() as served:
        assert ask(served).status_code == 200
        served.service.draining = True
        job = ask(served, background=True).json()["id"]
        with no_room():
            served.service.draining = False
            assert refusal(ask(served)) == LOST, "it was drawn, and its record was not kept"
            code, told = standing(served)
            assert (code, told["status"]) == (503, "records cannot be kept: File too large")
            drawn = served_engine.stats().rows
            answer = ask(served)
            assert (refusal(answer), answer.json()["error"]["code"]) == (LOST, "records_unavailable")
            assert served_engine.stats().rows == drawn, "nothing is drawn that could not be kept"
            assert refusal(ask(served, background=True)) == refusal(ask(served, "key")) == LOST
            assert "twig_records_unavailable 1.0" in HTTP.get(f"{served.url}/metrics").text
        wait_for(lambda: standing(served) == (200, {"status": "ready"}))
        assert "twig_records_unavailable 0.0" in HTTP.get(f"{served.url}/metrics").text
        wait_for(lambda: status(served, job) == "done")
        assert ask(served, "key").status_code == 200
    kept = AuditLog(tmp_path / "kept" / LOG_NAME).verify()
    assert (kept.findings, kept.lines) == ((), 3)
    assert len(list((tmp_path / "kept").glob("twig-*.json"))) == 3
    assert not list((tmp_path / "kept").rglob(".twig-*"))


def test_a_database_that_another_process_holds_is_told_and_pictures_are_drawn_meanwhile(another, tmp_path):
    with another() as served:
        job = ask(served, background=True, steps=10).json()["id"]
        wait_for(lambda: status(served, job) != "queued")
        with locked(tmp_path / "kept" / "jobs.db"):
            assert refusal(ask(served, background=True)) == refusal(ask(served, "key")) == LOST
            assert HTTP.get(f"{served.url}/v1/twig/jobs/{job}").json()["error"]["code"] == "jobs_unavailable"
            assert standing(served) == (200, {"status": "ready", "jobs": "cannot be kept: the server's log says why"})
            assert ask(served).status_code == 200
            wait_for(lambda: not served.service.first.engine.engine.pending, seconds=60)
        wait_for(lambda: status(served, job) == "done")
        assert ask(served, "key").status_code == 200
    assert len(list((tmp_path / "kept" / "jobs").glob("*-answer"))) == 2
    assert AuditLog(tmp_path / "kept" / LOG_NAME).verify().lines == 3, "no job was drawn again"


def test_what_is_drawn_while_the_chain_cannot_go_on_is_not_shown_and_is_drawn_again(another, tmp_path):
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    with another({"log": url}) as served:
        first = ask(served, "kept").json()
        served.service.draining = True
        job = ask(served, background=True).json()["id"]
        with locked(tmp_path / "audit.db"):
            served.service.draining = False
            assert refusal(ask(served, "key")) == LOST
            wait_for(lambda: status(served, job) == "queued" and not served.service.worker.running)
            assert standing(served)[0] == 503
            assert ask(served, "kept").json() == first, "what was answered is answered"
        wait_for(lambda: standing(served)[0] == 200)
        assert ask(served, "key").json() == ask(served, "key").json()
        wait_for(lambda: status(served, job) == "done")
    assert AuditLog(url, root=tmp_path / "kept").verify().findings == ()


def test_a_database_that_was_deleted_is_made_anew_and_no_answer_is_lost_in_the_old_one(another, tmp_path):
    with another() as served:
        ask(served, background=True)
        os.unlink(tmp_path / "kept" / "jobs.db")
        answer = ask(served, background=True)
        if answer.status_code == 503:  # or somebody else has missed it first
            wait_for(lambda: not served.service.desk.places.why)
            answer = ask(served, background=True)
        wait_for(lambda: status(served, answer.json()["id"]) == "done")


def test_a_postgresql_that_ends_every_connection_is_reached_again(another, postgresql):
    driven = postgresql.replace("postgresql:", "postgresql+psycopg:")
    with sqlalchemy.create_engine(driven, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE outages")
    own = postgresql.replace("/postgres?", "/outages?")
    other = sqlalchemy.create_engine(driven.replace("/postgres?", "/outages?"))
    with another({"log": own}, store=own) as served:
        assert ask(served, background=True).status_code == 202
        for _ in range(3):
            with other.begin() as connection:
                ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                connection.exec_driver_sql(ended)
            wait_for(lambda: ask(served).status_code == 200)
            wait_for(lambda: ask(served, background=True).status_code == 202)
        with other.begin() as connection:
            connection.exec_driver_sql("LOCK TABLE twig_jobs IN ACCESS EXCLUSIVE MODE")
            assert refusal(ask(served, background=True)) == LOST
        other.dispose()
        wait_for(lambda: ask(served, background=True).status_code == 202)


def test_a_storage_that_answers_with_errors_loses_no_job(another, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.resource("s3").create_bucket(Bucket="pictures")
        with another(artefacts="s3://pictures/twig") as served:
            served.service.draining = True  # so that it waits
            job = ask(served, background=True).json()["id"]
            with Stubber(served.service.desk.artefacts._client) as storage:
                for _ in range(200):
                    storage.add_client_error("get_object", "SlowDown", http_status_code=503)
                served.service.draining = False
                wait_for(lambda: served.service.desk.places.why)
                assert refusal(ask(served, background=True)) == LOST
            wait_for(lambda: status(served, job) == "done")


def test_a_clock_that_is_put_back_or_ahead_loses_no_job_and_draws_none_twice(another, served_engine, monkeypatch):
    now, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: now() + shift[0])
    with another(lease=0.5) as served:
        for jump in (-3600.0, 7200.0):
            drawn = served_engine.stats().verdicts.get("accepted", 0)
            job, answers = ask(served, background=True, steps=8).json()["id"], []
            asking = threading.Thread(target=lambda a=answers, j=jump: a.append(ask(served, str(j), steps=8)))
            asking.start()
            wait_for(lambda: status(served, job) == "running")  # noqa: B023
            wait_for(lambda: served.service.desk.keys)
            shift[0] += jump
            assert ask(served, str(jump), steps=8).status_code == 409
            asking.join()
            assert answers[0].status_code == 200
            wait_for(lambda: status(served, job) == "done")  # noqa: B023
            assert served_engine.stats().verdicts["accepted"] == drawn + 2


def test_two_servers_on_one_folder_write_one_chain_and_draw_each_job_once(another, tmp_path):
    with another() as first, another() as second:
        jobs = [ask(served, background=True, seed=seed).json()["id"] for seed in range(2) for served in (first, second)]
        plain = [ask(served, seed=100).status_code for served in (first, second)]
        assert plain == [200, 200]
        wait_for(lambda: all(status(second, job) == "done" for job in jobs))
        assert ask(first, "k").json() == ask(second, "k").json()
    kept = AuditLog(tmp_path / "kept" / LOG_NAME).verify()
    assert (kept.findings, kept.lines) == ((), 7)
