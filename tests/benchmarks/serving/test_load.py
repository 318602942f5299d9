"""The load comes when it is due, at real servers; and what a user would write around diffusers is written well."""

import threading
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import uvicorn
from PIL import Image

pytest.importorskip("httpx2", reason="loads are sent by httpx2")

from servers import running
from twig.benchmarks.rows import write_rows
from twig.benchmarks.serving.__main__ import QUICK, measured_by
from twig.benchmarks.serving.limits import HEAVY_KEYS, answers_again, fairness
from twig.benchmarks.serving.load import Call, drive
from twig.benchmarks.serving.pictures import decoded, encoded
from twig.benchmarks.serving.queued import Queue, application
from twig.benchmarks.serving.traffic import PLAIN, TWIG, TWO_STEP, Bench, at_once, bodies, traffic
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.keys import Keys


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=8, rows=8))


def config(folder, **listen):
    drawing = {"rule": "refuse if ssim > 1", "preset": "gentle"}
    return ServeConfig(drawing=drawing, records={"folder": folder}, drain={"grace": 0}, listen=listen)


def test_calls_are_sent_when_they_are_due_and_streams_tell_their_first_picture(engine, tmp_path):
    asked = bodies(4, 1)
    stream = {"stream": True, "partial_images": 1}
    with running(engine, config(tmp_path)) as server:
        calls = [Call(0.3 * i, body | (stream if i == 3 else {})) for i, body in enumerate(asked)]
        answers = drive(server.url, calls, beside=[Call(3600.0, asked[0])])  # which nobody waits for
    assert [answer.call.body["prompt"] for answer in answers] == [body["prompt"] for body in asked]
    assert all(answer.done for answer in answers)
    assert [answer.first is not None for answer in answers] == [False, False, False, True]
    assert answers[3].first < answers[3].seconds
    assert answers[3].told["type"] == "image_generation.completed"


def test_a_call_that_is_sent_away_comes_again_after_the_seconds_it_was_told(engine, tmp_path):
    keys = Keys(tmp_path / "keys.json")
    key = keys.add("narrow", concurrent=1)
    with running(engine, config(tmp_path, keys=keys.path)) as server:
        first, second = bodies(2, 2)
        answers = drive(server.url, [Call(0.0, first, key), Call(0.0, second, key)], again=True)
    sent_away = [answer for answer in answers if answer.status == 429]
    assert len(sent_away) >= 1
    (later,) = answers_again(answers)
    assert later.call.at >= sent_away[0].retry_after
    assert later.call.body is sent_away[0].call.body


def test_a_broken_connection_is_no_answer():
    (answer,) = drive("http://127.0.0.1:9", at_once(bodies(1, 1)))
    assert (answer.status, answer.done) == (0, False)


def test_a_queue_draws_what_is_alike_together_and_eight_at_most(monkeypatch):
    batches, came = [], []
    all_came = threading.Event()
    drawn = Queue.drawn

    async def counted(queue, request):
        came.append(request)
        if len(came) == 17:
            all_came.set()
        return await drawn(queue, request)

    def draw(requests):
        all_came.wait(60)
        batches.append([request.final.steps for request in requests])
        return [np.full((8, 8, 3), request.seed, np.uint8) for request in requests]

    server = uvicorn.Server(uvicorn.Config(application(draw), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    asked = [{"prompt": "", "twig": {"seed": seed, "steps": 2 if seed == 5 else 3}} for seed in range(17)]
    monkeypatch.setattr(Queue, "drawn", counted)
    answers = drive(url, at_once(asked))
    server.should_exit = True
    thread.join()
    pictures = [decoded(answer.told["data"][0]["b64_json"])[0, 0, 0] for answer in answers]
    assert pictures == list(range(17))
    assert sorted(len(batch) for batch in batches)[-1] == 8
    assert all(len(set(batch)) == 1 for batch in batches)


def test_pictures_come_back_as_they_were():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(decoded(encoded(Image.fromarray(pixels))), pixels)


def test_what_is_measured_is_left_out_when_it_goes_on_and_only_of_the_same_plan(tmp_path):
    kinds = [{"measure": "capacity", "capacity": 1.0}, {"measure": "burst"}]
    kinds += [{"measure": "poisson", "load": load} for load in QUICK.loads]
    rows = [{"contender": name, **kind} for name in (TWIG, PLAIN, TWO_STEP) for kind in kinds]
    rows += [{"measure": "fairness", "heavy_key": name} for name in HEAVY_KEYS]
    write_rows(tmp_path / "rows", [row | {"plan": asdict(QUICK)} for row in rows])
    bench = Bench(tmp_path, QUICK, measured_by(tmp_path / "rows", QUICK))
    assert [*traffic(bench), *fairness(bench)] == []
    assert measured_by(tmp_path / "rows", replace(QUICK, steps=11)) == []
    assert measured_by(tmp_path / "none", QUICK) == []
