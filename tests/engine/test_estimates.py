"""Costs before they are spent, the rate they are spent at, and an end within a deadline."""

import asyncio

import numpy as np
import pytest
from PIL import Image

from twig.engine.aio import AsyncEngine
from twig.engine.api.errors import EngineClosedError, InvalidRequestError
from twig.engine.api.event import State
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, InitialNoise
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.shallow import shallow_share

ANY = SimilarityPolicy(limits={}, retries=0)
LISTENING = Gate(limits={"agreement": -2.0}, witnesses=2)
"""A gate that hears two witnesses and opens whatever they say."""


def request(prompt="a red star", steps=3, **changes):
    settings = {"draft": Stage(steps=10), "final": Stage(steps=steps), "similarity": ANY}
    return GenerationRequest(prompt=prompt, **settings | changes)


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint).components


@pytest.fixture
def engine(components):
    return Engine(components, limits=Limits(slots=4, rows=8))


ASKED = {
    "plain": request(avoidance=Avoidance.off()),
    "several": request(num_images=3),
    "source": request(source=Image.new("RGB", (64, 64), "red")),
    "probes": request(avoidance=Avoidance(initial_noise=InitialNoise(), delayed_guidance=DelayedGuidance(stop=0.4))),
    "witnesses": request(gate=LISTENING),
    "unguided": request(draft=Stage(steps=4, guidance_scale=1)),
}


def test_rows_that_take_the_deep_part_over_count_for_what_they_cost(engine):
    whole, cached = (engine.estimate(request(draft=Stage(steps=40, cache_interval=n))) for n in (1, 2))
    share = shallow_share(engine.components.unet)
    assert 0 < share < 1
    assert whole - cached == int((1 - share) * 40)
    engine.submit(request(draft=Stage(steps=40, cache_interval=2)))
    assert engine.queued_rows == cached


@pytest.mark.parametrize("name", ASKED)
def test_an_estimate_is_what_first_attempts_are_billed(engine, name):
    wanted = ASKED[name]
    estimated = engine.estimate(wanted)
    engine.generate(wanted)
    assert estimated == engine.stats().rows > 0


@pytest.mark.parametrize("name", ASKED)
def test_queued_rows_fall_by_what_is_spent(engine, name):
    engine.submit(ASKED[name])
    total = engine.estimate(ASKED[name])
    while engine.pending:
        assert engine.queued_rows == total - engine.stats().rows
        engine.step()
    assert engine.queued_rows == 0
    assert engine.stats().rows == total


def test_what_is_cancelled_is_queued_no_more(engine):
    id = engine.submit(request())
    engine.cancel(id)
    assert engine.queued_rows == 0
    engine.drain()


def test_an_estimate_is_refused_for_what_cannot_be_served(engine):
    with pytest.raises(InvalidRequestError, match="width"):
        engine.estimate(request(width=62))


def test_the_rate_is_of_work_and_not_of_waiting(engine):
    assert engine.rows_per_second == 0
    engine.generate(request())
    stats, rate = engine.stats(), engine.rows_per_second
    assert rate == pytest.approx(stats.rows / sum(stats.seconds.values()))


def test_a_prompt_alone_is_a_request(engine, components):
    stages = {"draft": Stage(steps=2), "final": Stage(steps=2)}
    mixed = engine.generate(["a red star", GenerationRequest(prompt="tree", **stages)])
    assert [result.request.prompt for result in mixed] == ["a red star", "tree"]
    (plain,) = Engine(components).generate("a red star")
    assert np.abs(np.asarray(mixed[0].image, int) - np.asarray(plain.image, int)).max() <= 1


# --- the end ---


def test_a_closed_engine_is_not_alive(engine):
    assert engine.alive
    engine.close()
    assert not engine.alive


def test_an_engine_whose_step_broke_is_not_alive_until_one_succeeds(engine, monkeypatch):
    def broken():
        raise RuntimeError("the loop broke")

    with monkeypatch.context() as patch:
        patch.setattr(engine._loop, "step", broken)
        with pytest.raises(RuntimeError):
            engine.step()
    assert not engine.alive
    engine.step()
    assert engine.alive


def ends(events):
    return {event.id: event.result.verdict for event in events if event.result is not None}


def test_a_deadline_finishes_what_it_can_and_returns_the_rest_cancelled(engine):
    short = engine.submit(request(steps=1, draft=Stage(steps=1, guidance_scale=1), priority=5))
    long = engine.submit(request(steps=150))
    while not any(job.request_id == long and job.state is State.FINALISING for job in engine.scheduler.jobs.values()):
        events = engine.step()
        if short in ends(events):
            break
    assert ends(engine.close(deadline=0)).get(long) is Verdict.CANCELLED
    assert engine.pending == 0
    assert engine.scheduler.free_slots == engine.limits.slots
    with pytest.raises(EngineClosedError):
        engine.submit(request())


def test_without_a_deadline_everything_is_finished(engine):
    ids = [engine.submit(request(seed=seed)) for seed in range(3)]
    assert ends(engine.close(deadline=1e6)) == dict.fromkeys(ids, Verdict.ACCEPTED)


def test_streams_end_within_the_deadline_too(engine):
    async def main():
        async with AsyncEngine(engine) as served:
            assert served.alive
            task = asyncio.create_task(served.generate(request(steps=150)))
            await asyncio.sleep(0)
            await served.close(deadline=0)
            assert not served.alive
            return await task

    assert [result.verdict for result in asyncio.run(main())] == [Verdict.CANCELLED]
