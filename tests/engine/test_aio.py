"""The asyncio face, without a plug-in: each test runs its own loop."""

import asyncio
import threading

import pytest

from twig.engine.aio import AsyncEngine
from twig.engine.api.errors import EngineBusyError, EngineClosedError, InvalidRequestError
from twig.engine.api.event import State
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine

ALWAYS = SimilarityPolicy(limits={"ssim": 1.0})


def request(prompt="a star", steps=2, **changes):
    return GenerationRequest(
        prompt=prompt, draft=Stage(steps=2), final=Stage(steps=steps), similarity=ALWAYS, **changes
    )


@pytest.fixture
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=4, rows=8, waiting=8))


def test_requests_stream_side_by_side(engine):
    async def one(served, wanted):
        return [event async for event in served.stream(wanted)]

    async def main():
        async with AsyncEngine(engine) as served:
            return await asyncio.gather(*(one(served, request(p, num_images=2)) for p in ("a star", "tree", "moon")))

    for events in asyncio.run(main()):
        assert events[0].state is State.QUEUED
        assert [e.result.verdict for e in events if e.result is not None] == [Verdict.ACCEPTED] * 2
        assert len({e.id for e in events}) == 1


def test_steps_that_show_nothing_go_to_the_listener_alone(engine):
    every = []

    async def main():
        async with AsyncEngine(engine) as served:
            return [event async for event in served.stream(request(steps=4, preview=2), every.append)]

    told = asyncio.run(main())
    assert [event for event in every if not event.passing or event.picture is not None] == told
    assert [event.step for event in told if event.passing] == [2, 2, 4], "previews of draft and final"
    assert [event.step for event in every if event.passing] == [1, 2, 1, 2, 3, 4]


def test_the_picture_equals_the_synchronous_one(engine, tiny_checkpoint):
    async def main():
        async with AsyncEngine(engine) as served:
            return await served.generate(request())

    (streamed,) = asyncio.run(main())
    (plain,) = Engine.from_pretrained(tiny_checkpoint).generate(request())
    assert streamed.image.tobytes() == plain.image.tobytes()


def test_leaving_a_stream_cancels_its_request(engine):
    async def main():
        async with AsyncEngine(engine) as served:
            async for event in served.stream(request(steps=60)):
                if event.state is State.FINALISING:
                    break
            return await served.generate(request("tree"))

    assert asyncio.run(main())[0].verdict is Verdict.ACCEPTED
    assert engine.pending == 0
    assert engine.stats().verdicts == {"cancelled": 1, "accepted": 1}


def test_errors_at_the_door_reach_the_caller(engine):
    async def main():
        async with AsyncEngine(engine) as served:
            with pytest.raises(InvalidRequestError, match="width"):
                await served.generate(request(width=62))
            crowd = [asyncio.create_task(served.generate(request(steps=4))) for _ in range(30)]
            return await asyncio.gather(*crowd, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert any(isinstance(o, EngineBusyError) for o in outcomes)
    assert all(isinstance(o, EngineBusyError) or o[0].verdict is Verdict.ACCEPTED for o in outcomes)


def test_shutdown_finishes_what_was_accepted_and_takes_no_more(engine):
    async def main():
        served = AsyncEngine(engine)
        async with served:
            task = asyncio.create_task(served.generate(request()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with pytest.raises(EngineClosedError):
            await served.generate(request())
        return await task

    assert asyncio.run(main())[0].verdict is Verdict.ACCEPTED


def test_an_error_in_the_block_cancels_the_rest(engine):
    async def main():
        async with AsyncEngine(engine) as served:
            task = asyncio.create_task(served.generate(request(steps=100)))
            await asyncio.sleep(0.05)
            raise RuntimeError("caller broke")
        await task

    with pytest.raises(RuntimeError, match="caller broke"):
        asyncio.run(main())
    assert engine.pending == 0


def test_a_slow_reader_misses_stale_steps_and_nothing_else(engine):
    """It sleeps until the request is done: steps that were overtaken are gone, each move and result is there."""

    async def main():
        async with AsyncEngine(engine) as served:
            seen = []
            async for event in served.stream(request(steps=90, preview=1, num_images=2)):
                if not seen:
                    await asyncio.to_thread(drained, engine)
                seen.append(event)
            return seen

    seen = asyncio.run(main())
    steps = [event for event in seen if event.step]
    assert 0 < len(steps) <= 32
    assert max(event.step for event in steps) == 90, "the latest are kept"
    moves = [event.state for event in seen if not event.step and event.index == 0]
    assert moves == [
        State.QUEUED, State.ENCODED, State.DRAFTING, State.SEGMENTING, State.SEGMENTED, State.PLACING, State.FINALISING,
        State.JUDGING, State.ACCEPTED,
    ]  # fmt: skip
    assert sorted(event.index for event in seen if event.result is not None) == [0, 1]


def drained(engine):
    """Wait, without stepping, until others have run everything."""
    while engine.pending:
        engine._turns.take(needless=lambda: not engine.pending) and engine._turns.leave()


def test_the_event_loop_turns_while_a_request_is_checked(engine, monkeypatch):
    admit, turned = engine._door.admit, []

    async def main():
        inside, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def slow(wanted):
            loop.call_soon_threadsafe(inside.set)
            assert go_on.wait(60)
            return admit(wanted)

        async with AsyncEngine(engine) as served:
            monkeypatch.setattr(type(engine._door), "admit", lambda door, wanted: slow(wanted))
            task = asyncio.create_task(served.generate(request()))
            await inside.wait()
            turned.append(True)
            go_on.set()
            return await task

    assert asyncio.run(main())[0].verdict is Verdict.ACCEPTED
    assert turned
