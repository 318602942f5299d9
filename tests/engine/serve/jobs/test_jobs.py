"""Jobs in the background and keys of idempotency, through a real server."""

import base64
import io
import threading

import boto3
import httpx2
import pytest
from moto import mock_aws
from PIL import Image

from servers import running, wait_for
from twig.engine.serve.jobs.desk import Desk
from twig.engine.serve.jobs.store import Job
from twig.engine.serve.keys import LOCAL, Keys

PROMPT = "a red star"
REFUSE = {"rule": "refuse if ssim > -1", "retries": 0}


class Asker:
    """Plain HTTP, so that statuses and headers are seen."""

    def __init__(self, served, key="none"):
        self.url, self.headers = served.url, {"authorization": f"Bearer {key}"}

    def post(self, idempotency=None, prompt=PROMPT, n=1, **twig):
        headers = self.headers | ({"idempotency-key": idempotency} if idempotency else {})
        body = {"prompt": prompt, "n": n, "twig": twig}
        return httpx2.post(f"{self.url}/v1/images/generations", json=body, headers=headers, timeout=60)

    def job(self, id):
        return httpx2.get(f"{self.url}/v1/twig/jobs/{id}", headers=self.headers)

    def drop(self, id):
        return httpx2.delete(f"{self.url}/v1/twig/jobs/{id}", headers=self.headers)

    def finished(self, id):
        wait_for(lambda: self.job(id).json()["status"] not in ("queued", "running"))
        return self.job(id).json()


@pytest.fixture(scope="module")
def asker(served):
    return Asker(served)


def opened(body) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))


def test_a_job_is_answered_at_once_and_drawn_later(asker, client):
    raw = client.images.with_raw_response.generate(prompt=PROMPT, extra_body={"twig": {"background": True, "seed": 9}})
    job = raw.parse().model_extra
    assert raw.http_response.status_code == 202
    assert raw.headers["location"] == f"/v1/twig/jobs/{job['id']}"
    done = asker.finished(job["id"])
    assert (done["status"], done["response"]["status_code"]) == ("done", 200)
    plain = asker.post(seed=9).json()
    assert opened(done["response"]["body"]).tobytes() == opened(plain).tobytes()
    assert done["response"]["body"]["data"][0]["twig"]["record"] == plain["data"][0]["twig"]["record"]


def test_a_jobs_refusal_is_its_answer(asker):
    done = asker.finished(asker.post(background=True, **REFUSE).json()["id"])
    assert done["response"]["status_code"] == 400
    assert done["response"]["body"]["error"]["code"] == "moderation_blocked"


def test_what_cannot_be_served_is_said_before_a_job_is_made(asker):
    answer = asker.post(background=True, rule="refuse if beauty > 1")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


def test_a_job_is_called_off_while_it_runs_and_forgotten_when_it_is_done(asker, served_engine):
    id = asker.post(background=True, steps=50).json()["id"]
    wait_for(lambda: asker.job(id).json()["status"] == "running")
    assert asker.drop(id).json()["status"] == "cancelled"
    wait_for(lambda: served_engine.pending == 0)
    assert asker.job(id).json()["status"] == "cancelled"
    id = asker.post(background=True).json()["id"]
    asker.finished(id)
    assert asker.drop(id).json()["deleted"]
    assert asker.job(id).status_code == 404


def test_the_same_key_is_the_same_picture(asker, served_engine):
    first = asker.post("once")
    rows = served_engine.stats().rows
    again = asker.post("once")
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert served_engine.stats().rows == rows
    other = asker.post("once", prompt="a moon")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert asker.post("other").json()["data"][0]["twig"]["seed"] != first.json()["data"][0]["twig"]["seed"]


def test_a_refusal_is_kept_and_a_mistake_is_not(asker):
    first, again = asker.post("refused", **REFUSE), asker.post("refused", **REFUSE)
    assert first.json() == again.json()
    assert again.headers["x-should-retry"] == "false"
    assert asker.post("wrong", sead=1).status_code == 400
    assert asker.post("wrong").status_code == 200


def test_a_key_that_is_being_answered_is_not_drawn_twice(asker, served_engine):
    answers = []
    slow = threading.Thread(target=lambda: answers.append(asker.post("slow", steps=10)))
    slow.start()
    wait_for(lambda: served_engine.pending)
    meanwhile = asker.post("slow", steps=10)
    assert (meanwhile.status_code, meanwhile.headers["x-should-retry"]) == (409, "true")
    slow.join()
    assert asker.post("slow", steps=10).json() == answers[0].json()


def test_a_job_with_a_key_is_one_job(asker):
    ids = {asker.post("job", background=True).json()["id"] for _ in range(2)}
    assert len(ids) == 1
    asker.finished(ids.pop())


@pytest.mark.parametrize("key", ["ü".encode(), b"a b", b"x" * 256])
def test_what_is_no_key_is_refused(served, key):
    answer = httpx2.post(
        f"{served.url}/v1/images/generations", json={"prompt": "x"}, headers=[(b"idempotency-key", key)]
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "idempotency-key")


@pytest.fixture
def another(served_engine, plain_config, tmp_path):
    """Return a function that starts a server over a folder of its own."""

    def start(**jobs):
        return running(served_engine, plain_config.with_("records", folder=tmp_path).with_("jobs", **jobs))

    return start


def test_jobs_and_keys_are_their_owners(served_engine, plain_config, tmp_path):
    keys = Keys(tmp_path / "keys.json")
    mine, yours = keys.add("me"), keys.add("you", rows_per_minute=4)
    config = plain_config.with_("records", folder=tmp_path).with_("listen", keys=keys.path)
    with running(served_engine, config) as served:
        me, you = Asker(served, mine), Asker(served, yours)
        id = me.post(background=True).json()["id"]
        me.finished(id)
        assert you.job(id).status_code == you.drop(id).status_code == 404
        assert me.post("shared").json() != you.post("shared").json()
        spent = you.post(background=True)
        assert (spent.status_code, spent.json()["error"]["code"]) == (429, "rows_spent")


def test_a_server_that_ends_queues_what_it_was_drawing_and_the_next_one_draws_it(another):
    with another() as first:
        id = Asker(first).post(background=True, steps=10, seed=7).json()["id"]
        wait_for(lambda: Asker(first).job(id).json()["status"] == "running")
        first.server.deadline = 0
    with another() as second:
        answer = Asker(second).finished(id)
    assert answer["response"]["body"]["data"][0]["twig"]["seed"] == 7


def test_a_full_list_and_a_job_that_takes_its_server_with_it_are_answered(another, plain_config, tmp_path):
    desk = Desk(plain_config.jobs, tmp_path)
    desk.check()
    desk.store.add(Job("job-poison", LOCAL.id, 0, 1.0, 1.0))
    for attempt in range(3):  # of servers that died of it
        desk.store.take(f"dead {attempt}", float(attempt), attempt + 0.5)
    desk.store.add(Job("job-lost", LOCAL.id, 0, 1.0, 1.0))
    with another(waiting=1) as served:
        asker = Asker(served)
        assert asker.finished("job-poison")["response"]["body"]["error"]["code"] == "gave_up"
        assert asker.finished("job-lost")["response"]["body"]["error"]["code"] == "request_lost"
        served.service.draining = True
        assert asker.post(background=True).status_code == 202
        full = asker.post(background=True)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")


def test_answers_are_forgotten_after_their_time(another, tmp_path):
    with another(keep=1e-5) as served:
        id = Asker(served).post(background=True).json()["id"]
        Asker(served).post("once")
        wait_for(lambda: Asker(served).job(id).status_code == 404)
        wait_for(lambda: not list((tmp_path / "jobs").iterdir()))


def test_jobs_lie_in_postgresql_and_s3_as_they_do_in_a_folder(another, postgresql, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        bucket = boto3.resource("s3").create_bucket(Bucket="pictures")
        with another(store=postgresql, artefacts="s3://pictures/twig") as served:
            asker = Asker(served)
            id = asker.post("kept", background=True).json()["id"]
            assert opened(asker.finished(id)["response"]["body"]).size == (64, 64)
            kept = {each.key for each in bucket.objects.all()}
            assert f"twig/{id}-answer" in kept
            assert f"twig/{id}-request" not in kept
            assert asker.drop(id).json()["deleted"]
    assert not (tmp_path / "jobs.db").exists()
