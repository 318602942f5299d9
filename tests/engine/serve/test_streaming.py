"""Streams of the real client: drafts and previews come before the picture, and leaving early costs nothing more."""

import base64
import io
import threading

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from servers import wait_for

PROMPT = "a red star on a green field"
REFUSE = {"rule": "refuse if ssim > -1", "retries": 0}


def stream(client, **changes):
    return client.images.generate(prompt=PROMPT, stream=True, **changes)


def opened(event) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(event.b64_json)))


def test_a_draft_and_previews_come_before_the_picture(client):
    options = {"always": True, "steps": 4, "seed": 3, "mask": True}
    events = list(stream(client, partial_images=3, extra_body={"twig": options}))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert [event.model_extra["twig"]["stage"] for event in events[:3]] == ["draft", "final", "final"]
    assert events[0].model_extra["twig"]["mask"]
    done = events[-1]
    assert (opened(done).size, done.size, done.output_format) == ((64, 64), "64x64", "png")
    assert done.usage.output_tokens == done.model_extra["twig"]["rows"]
    plain = client.images.generate(prompt=PROMPT, extra_body={"twig": options}).data[0]
    assert np.array_equal(np.asarray(opened(done)), np.asarray(opened(plain)))


def test_a_stream_without_partial_images_is_the_picture_alone(client):
    assert [event.type for event in stream(client)] == ["image_generation.completed"]


def test_a_refusal_ends_a_stream_with_an_error(client):
    events = stream(client, partial_images=1, extra_body={"twig": REFUSE | {"always": True}})
    assert next(events).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError) as caught:
        list(events)
    assert caught.value.code == "moderation_blocked"
    assert caught.value.body["twig"]["verdict"] == "refused"


def test_a_stream_of_several_pictures_says_which_each_event_is_of(client):
    options = {"twig": {"always": True, "steps": 4, "seed": 3}}
    events = list(stream(client, n=2, partial_images=2, extra_body=options))
    told = [(event.type.rpartition(".")[2], event.model_extra["twig"]["index"]) for event in events]
    assert sorted(told) == [("completed", 0), ("completed", 1), *(("partial_image", index) for index in (0, 0, 1, 1))]
    partial = [event for event in events if "partial" in event.type]
    numbers = [(event.model_extra["twig"]["index"], event.partial_image_index) for event in partial]
    assert sorted(numbers) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    plain = client.images.generate(prompt=PROMPT, n=2, extra_body=options)
    done = [event for event in events if "completed" in event.type]
    assert {event.model_extra["twig"]["index"]: event.b64_json for event in done} == dict(
        enumerate(item.b64_json for item in plain.data)
    )
    assert sum(event.usage.total_tokens for event in done) == plain.usage.total_tokens


def test_refused_ones_of_several_have_no_picture_and_the_stream_goes_on(client):
    events = list(stream(client, n=2, extra_body={"twig": REFUSE}))
    assert [(event.b64_json, event.model_extra["twig"]["verdict"]) for event in events] == [(None, "refused")] * 2


def test_a_stream_of_several_of_which_none_was_drawn_in_time_is_an_error(client):
    options = {"twig": {"steps": 50, "deadline": 0.01}}
    with pytest.raises(openai.APIError) as caught:
        list(stream(client, n=2, extra_body=options))
    assert caught.value.code == "deadline_exceeded"


def test_what_cannot_be_served_is_a_status_and_no_stream(client):
    with pytest.raises(openai.BadRequestError, match="multiple of"):
        stream(client, size="63x64")


def test_leaving_a_stream_frees_its_place_within_a_step(client, served_engine, caplog):
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(noise, "PNG")
    options = {"twig": {"steps": 50}}
    events = client.images.edit(
        image=noise.getvalue(), prompt=PROMPT, stream=True, partial_images=3, extra_body=options
    )
    next(events)  # a preview of the thirteenth step; a photo has no draft
    cancelled, steps = count(served_engine, "cancelled"), served_engine.stats().steps
    events.close()
    wait_for(lambda: served_engine.pending == 0)
    assert count(served_engine, "cancelled") == cancelled + 1
    assert served_engine.stats().steps - steps < 20, "of the 37 that were left"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_leaving_a_plain_request_frees_its_place_too(served, served_engine, caplog):
    cancelled = count(served_engine, "cancelled")
    body = {"prompt": PROMPT, "twig": {"steps": 50}}

    def ask():
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{served.url}/v1/images/generations", json=body, timeout=httpx2.Timeout(5, read=0.3))

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    wait_for(lambda: served_engine.pending == 0)
    assert count(served_engine, "cancelled") == cancelled + 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def count(engine, verdict):
    return engine.stats().verdicts.get(verdict, 0)
