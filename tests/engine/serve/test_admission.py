"""Who is let in: by what the queue takes, by the key's own limits, and by what it opens."""

import asyncio
import threading
import time
from functools import partial

import httpx2
import openai
import pytest

from servers import running
from twig.engine.api.choices import Role
from twig.engine.door import Door
from twig.engine.serve.admission import Admission
from twig.engine.serve.errors import ApiError
from twig.engine.serve.keys import Keys
from twig.engine.serve.tenants import TenantCounts

PROMPT = "a red star"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A file of keys, and the keys by whose they are."""
    file = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    held = {
        "ann": file.add("ann", priority=5),
        "one": file.add("one", concurrent=1),
        "poor": file.add("poor", rows_per_minute=8),
        "eve": file.add("eve", roles=(Role.AUDIT,)),
        "mo": file.add("mo", roles=(Role.METRICS,)),
        "gone": file.add("gone"),
    }
    file.revoke(file.find(held["gone"]).id)
    return file.path, held


@pytest.fixture(scope="module")
def keyed(served_engine, plain_config, keys):
    """A server that asks for keys, on which nobody may wait."""
    config = plain_config.with_("listen", keys=keys[0]).with_("bounds", wait=0.001).with_("drawing", preset="off")
    with running(served_engine, config) as server:
        yield server


@pytest.fixture(scope="module")
def of(keyed, keys):
    """Clients by whose they are."""
    return {name: keyed.client(key) for name, key in keys[1].items()}


def draw(client, **twig):
    return client.images.generate(prompt=PROMPT, extra_body={"twig": twig})


class Busy:
    """A long request that runs for as long as the block does."""

    def __init__(self, client, engine):
        self.client, self.engine = client, engine

    def __enter__(self):
        self.events = self.client.images.generate(
            prompt=PROMPT, stream=True, partial_images=0, extra_body={"twig": {"steps": 50}}
        )
        return self

    def __exit__(self, *_):
        self.events.close()
        while self.engine.pending:
            pass


def test_a_key_is_needed_and_must_open_what_is_asked_for(keyed, of, keys):
    for client in (keyed.client(), of["gone"]):
        with pytest.raises(openai.AuthenticationError) as caught:
            draw(client)
        assert caught.value.code == "invalid_api_key"
    for name in ("eve", "mo"):
        with pytest.raises(openai.PermissionDeniedError, match="this key opens"):
            draw(of[name])
    for path, opened in (("/metrics", "mo"), ("/v1/models", "ann"), ("/v1/twig/records/x", "eve")):
        for name, key in keys[1].items():
            status = httpx2.get(f"{keyed.url}{path}", headers={"authorization": f"Bearer {key}"}).status_code
            allowed = name == opened or (opened == "ann" and name in ("one", "poor"))
            assert (status in (200, 404)) == allowed, (path, name)
    assert httpx2.get(f"{keyed.url}/metrics").status_code == 401
    assert httpx2.get(f"{keyed.url}/livez").status_code == httpx2.get(f"{keyed.url}/readyz").status_code == 200


def test_a_priority_above_the_keys_is_refused(of):
    draw(of["ann"], priority=5)
    with pytest.raises(openai.PermissionDeniedError, match="above this key's 5"):
        draw(of["ann"], priority=6)


def test_rows_a_minute_are_spent_and_the_time_to_come_again_is_true(of):
    began = time.monotonic()
    draw(of["poor"])  # two stages of one step, guided: four rows of eight
    draw(of["poor"])
    with pytest.raises(openai.RateLimitError) as caught:
        draw(of["poor"])
    assert caught.value.code == "rows_spent"
    passed = time.monotonic() - began
    assert 29 - passed <= int(caught.value.response.headers["retry-after"]) <= 30, "four rows at eight a minute"
    with pytest.raises(openai.PermissionDeniedError, match="fewer steps"):
        draw(of["poor"], steps=5)


def test_a_full_queue_sends_away_with_the_time_it_takes(of, served_engine):
    draw(of["ann"])
    with Busy(of["ann"], served_engine), pytest.raises(openai.RateLimitError) as caught:
        draw(of["ann"])
    error = caught.value
    assert error.code == "queue_full"
    assert error.response.headers["x-should-retry"] == "true"
    assert int(error.response.headers["retry-after"]) >= 1
    draw(of["ann"])


def test_each_of_a_crowd_is_told_a_later_time(of, served_engine, monkeypatch):
    draw(of["ann"])
    admission = Admission(served_engine, 2.0, TenantCounts())
    monkeypatch.setattr(admission, "expected_wait", partial(asyncio.sleep, 0, 3.0))
    second = round(served_engine.rows_per_second)
    told = [asyncio.run(sent_away(admission, second)) for _ in range(70)]
    assert told[:6] == pytest.approx([1, 2, 3, 4, 5, 6], rel=0.1)
    assert told[-2:] == pytest.approx([60, 60]), "no later than many clients wait"
    monkeypatch.setattr(admission, "expected_wait", partial(asyncio.sleep, 0, 80.0))
    assert asyncio.run(sent_away(admission, second)) == pytest.approx(80 - 2, rel=0.1), "but when there is room"


async def sent_away(admission, rows):
    with pytest.raises(ApiError) as caught:
        await admission._check_queue(rows)
    return caught.value.retry_after


def test_requests_at_a_time_are_counted_by_key(keyed, of, served_engine):
    keyed.service.first.runner.admission.wait = 3600
    try:
        with Busy(of["one"], served_engine):
            with pytest.raises(openai.RateLimitError) as caught:
                draw(of["one"])
            assert caught.value.code == "too_many_requests"
            draw(of["ann"])
        draw(of["one"])
    finally:
        keyed.service.first.runner.admission.wait = 0.001


def test_a_request_goes_through_the_engines_door_once(of, monkeypatch):
    asked, admit = [], Door.admit
    monkeypatch.setattr(Door, "admit", lambda door, request: asked.append(request) or admit(door, request))
    draw(of["ann"])
    assert len(asked) == 1


def test_many_at_once_are_not_all_let_in(keyed, of, served_engine):
    draw(of["ann"])
    answers = []

    def ask():
        try:
            answers.append(draw(of["ann"], steps=4).data[0].twig["verdict"])
        except openai.RateLimitError as error:
            answers.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["accepted", "queue_full", "queue_full", "queue_full"]
