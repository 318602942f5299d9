"""One engine, many callers: whoever steps, each gets its own events and results, and nobody waits for ever."""

import asyncio
import threading

import numpy as np
import pytest

from twig.engine.aio import AsyncEngine
from twig.engine.api.errors import EngineClosedError, TwigError
from twig.engine.api.event import State
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching.carried import Shared
from twig.engine.batching.job import Job
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine

ANY = SimilarityPolicy(limits={}, retries=0)
SECONDS = 120
"""Longest that a thread may take before a test says it hangs."""


def request(prompt="a red star", steps=2, **changes):
    return GenerationRequest(prompt=prompt, draft=Stage(steps=2), final=Stage(steps=steps), similarity=ANY, **changes)


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint).components


@pytest.fixture
def engine(components):
    return Engine(components, limits=Limits(slots=4, rows=8, waiting=16))


def ended(events):
    assert not [event.result.error for event in events if event.result is not None and event.result.error]
    return {event.id: event.result.verdict for event in events if event.result is not None}


def prompts(results):
    return [(result.request.prompt, result.index, result.verdict) for result in results]


def run(*works):
    """Run each of `works` in a thread of its own and return what they return; what one raises is raised here."""
    found = [None] * len(works)

    def one(i):
        try:
            found[i] = works[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a caller waits for ever"
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    return found


def test_what_was_submitted_before_a_generate_is_heard_of_after_it(engine):
    id = engine.submit(request("tree"))
    results = engine.generate([request(), request("a moon", num_images=2)])
    assert prompts(results) == [
        ("a red star", 0, Verdict.ACCEPTED), ("a moon", 0, Verdict.ACCEPTED), ("a moon", 1, Verdict.ACCEPTED),
    ]  # fmt: skip
    events = engine.drain()
    assert ended(events) == {id: Verdict.ACCEPTED}
    assert {event.id for event in events} == {id}
    assert events[0].state is State.QUEUED


def test_two_threads_generate_at_once_and_each_gets_its_own(engine, components):
    batches = [[request(p, steps=s, num_images=n) for p in words] for words, s, n in (
        (("a red star", "tree"), 2, 1), (("a moon", "a house", "a circle"), 5, 2), (("a tree and a moon",), 3, 1),
    )]  # fmt: skip
    found = run(*(lambda batch=batch: engine.generate(batch) for batch in batches))
    alone = Engine(components, limits=engine.limits)
    for batch, results in zip(batches, found, strict=True):
        for one, other in zip(results, alone.generate(batch), strict=True):
            assert (one.request, one.index) == (other.request, other.index)
            assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1
    assert engine.pending == 0
    assert engine.drain() == []


def test_who_waits_for_another_threads_steps_gets_results_as_they_come(engine):
    """The short request ends while the long one still runs, though the other thread takes every step."""
    order, long_runs = [], threading.Event()

    def long():
        engine.generate(request(steps=60), on_event=lambda event: event.step and long_runs.set())
        order.append("long")

    def short():
        assert long_runs.wait(SECONDS)
        engine.generate(request("tree"))
        order.append("short")

    run(long, short)
    assert order == ["short", "long"]


def test_generate_works_beside_streams(engine):
    async def main():
        async with AsyncEngine(engine) as served:
            streams = [asyncio.create_task(served.generate(request(p, steps=4))) for p in ("tree", "a moon")]
            direct = await asyncio.to_thread(engine.generate, [request(seed=i) for i in range(3)])
            return direct, await asyncio.gather(*streams)

    direct, streamed = asyncio.run(main())
    assert [result.request.seed for result in direct] == [0, 1, 2]
    assert [result.request.prompt for (result,) in streamed] == ["tree", "a moon"]


def test_prompts_may_be_checked_while_others_are_encoded(engine):
    """Both ask the tokenizer, with other padding."""
    checked, done = [], threading.Event()

    def check():
        while not done.is_set():
            engine._door.admit(request("a star and " * 20))
            checked.append(True)

    def encode():
        try:
            for number in range(150):
                job = Job(0, 0, request(f"star {number}"), (16, 16), 0.0, Shared())
                engine.stages.encoding.encode([job])
                assert job.shared.input_ids.shape == (77,)
        finally:
            done.set()

    run(encode, check)
    assert checked


def test_two_async_engines_share_one(engine):
    async def main():
        async with AsyncEngine(engine) as one, AsyncEngine(engine) as other:
            return await asyncio.gather(one.generate(request("tree")), other.generate(request("a moon")))

    assert [result.request.prompt for (result,) in asyncio.run(main())] == ["tree", "a moon"]


def test_a_plain_submit_beside_streams_is_heard_of_by_the_next_step(engine):
    id = engine.submit(request("tree"))

    async def main():
        async with AsyncEngine(engine) as served:
            await served.generate(request())

    asyncio.run(main())
    assert ended(engine.drain()) == {id: Verdict.ACCEPTED}


def test_generate_may_be_called_while_it_tells_of_an_event(engine):
    inner = []

    def on_event(event):
        if event.state is State.SEGMENTED and not inner:
            inner.extend(engine.generate([request("tree"), request("a moon")]))

    (outer,) = engine.generate(request(), on_event)
    assert [result.request.prompt for result in (outer, *inner)] == ["a red star", "tree", "a moon"]


def test_an_interrupted_generate_leaves_others_alone(engine):
    id = engine.submit(request("tree", steps=6))

    def interrupt(event):
        if event.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(request(), interrupt)
    assert engine.pending == 1
    assert ended(engine.drain()) == {id: Verdict.ACCEPTED}


def test_stepping_from_within_a_step_is_refused_and_fails_its_request_alone(components):
    engines = []

    def metric(finals, references):
        engines[0].generate(request("a moon"))

    engines.append(Engine(components, extra_metrics={"nested": metric}))
    (result,) = engines[0].generate(request())
    assert result.verdict is Verdict.FAILED
    assert "cannot step it again" in result.error
    engines[0].drain()
    assert engines[0].pending == 0


def test_a_listener_hears_its_request_in_order(engine):
    heard = []
    id = engine.submit(request(num_images=2), heard.append)
    assert engine.drain() == []
    assert {event.id for event in heard} == {id}
    states = list(dict.fromkeys(event.state for event in heard))
    assert (states[0], states[-1]) == (State.QUEUED, State.ACCEPTED)
    assert sorted(event.index for event in heard if event.result is not None) == [0, 1]


def test_a_listener_that_raises_has_its_request_cancelled(engine, caplog):
    def deaf(event):
        if event.state is State.DRAFTING:
            raise ValueError("no more")

    engine.submit(request("tree", steps=40), deaf)
    (result,) = engine.generate(request())
    assert result.verdict is Verdict.ACCEPTED
    assert engine.pending == 0
    assert engine.stats().verdicts == {"accepted": 1, "cancelled": 1}
    assert "the request is cancelled" in caplog.text


def test_what_is_cancelled_leaves_its_place_at_once(components):
    engine = Engine(components, limits=Limits(slots=2, rows=4, waiting=2))
    first = engine.submit(request())
    engine.submit(request("tree"))
    engine.cancel(first)
    assert engine.stats().waiting == 1
    engine.submit(request("a moon"))
    assert sorted(ended(engine.drain()).values()) == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.CANCELLED]


# --- where it cannot be shared ---


def test_another_event_loop_is_refused_at_once(engine):
    served = AsyncEngine(engine)

    async def elsewhere():
        return await served.generate(request())

    async def main():
        async with served:
            with pytest.raises(TwigError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, elsewhere())

    asyncio.run(main())
    with pytest.raises(EngineClosedError):
        asyncio.run(elsewhere())


def test_entering_twice_is_refused(engine):
    async def main():
        async with AsyncEngine(engine) as served:
            with pytest.raises(TwigError, match="entered before"):
                await served.__aenter__()

    asyncio.run(main())


@pytest.mark.parametrize("error", [RuntimeError("the loop broke"), SystemExit(3)])
def test_nobody_waits_for_a_thread_that_died(engine, monkeypatch, error):
    async def main():
        async with AsyncEngine(engine) as served:
            waiting = [asyncio.create_task(served.generate(request(p, steps=50))) for p in ("tree", "a moon")]
            await asyncio.sleep(0)

            def step():
                raise error

            monkeypatch.setattr(engine._loop, "step", step)
            outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), SECONDS)
            with pytest.raises(EngineClosedError, match="thread died"):
                await served.generate(request())
            return outcomes

    outcomes = asyncio.run(main())
    assert all(isinstance(outcome, EngineClosedError) for outcome in outcomes), outcomes
    assert all(str(error) in str(outcome) for outcome in outcomes)
    monkeypatch.undo()
    engine.drain()
    assert engine.pending == 0


def test_an_error_of_the_loop_reaches_every_thread_that_waits(engine, monkeypatch):
    def broken():
        raise RuntimeError("the loop broke")

    monkeypatch.setattr(engine._loop, "step", broken)

    def one():
        with pytest.raises(RuntimeError, match="the loop broke"):
            engine.generate(request())

    run(one, one)
    monkeypatch.undo()
    assert engine.generate(request())[0].verdict is Verdict.ACCEPTED
