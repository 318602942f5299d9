"""Ten thousand jobs of every fate through the real loop, over stages that compute nothing: nothing stays behind."""

import asyncio
import dataclasses
import gc
import itertools
import random
import threading
from collections import Counter, deque

import numpy as np
import pytest
import torch

from twig.engine.aio import AsyncEngine
from twig.engine.api.errors import EngineBusyError
from twig.engine.api.event import Event
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Attempt, GateDecision, GenerationResult, Verdict
from twig.engine.api.rules import Decision
from twig.engine.api.settings import Stage
from twig.engine.batching.carried import Own, Shared
from twig.engine.batching.denoising import Bucket
from twig.engine.batching.job import Job, Trajectory
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.sampling.rows import plan_rows

JOBS = 10_000
FAULTS = ("encode", "start_draft", "denoise", "segment", "start_final", "judge")
FATES = ("accepted", "refused", *FAULTS)
OWNED = (Job, Trajectory, Shared, Own, Event, GenerationResult, Attempt, torch.Tensor)
"""What a job brings with it and must take along."""


class NoStage:
    """Stands in for every stage and computes nothing: a prompt says in words what becomes of its request."""

    def __init__(self, judging):
        self.judging = judging

    def encode(self, jobs):
        self._fail("encode", jobs)

    def begin(self, job):
        return False

    def ended(self):
        return []

    def wait(self, seconds):
        pass

    def start_draft(self, job):
        self._fail("start_draft", [job])
        job.trajectory = self._run(job.request.draft)

    def start_final(self, job):
        self._fail("start_final", [job])
        job.own = job.own or Own()
        job.trajectory = self._run(job.request.final)

    def denoise(self, jobs, apart):
        self._fail("denoise", jobs)
        for job in jobs:
            job.trajectory.advance()
        return Bucket(16, 0, 77)

    def segment(self, jobs):
        self._fail("segment", jobs)
        for job in jobs:
            job.shared.reference, job.shared.mask = torch.zeros(1, 3, 2, 2), np.zeros((2, 2), bool)
            job.shared.drawn = np.zeros((2, 2, 3), np.uint8)
            job.shared.gate = GateDecision(True, {})

    def wants_witnesses(self, job):
        return False

    def apart(self, jobs):
        return self.judging.apart(jobs)

    def judge(self, jobs):
        self._fail("judge", jobs)
        for job in jobs:
            decision = Decision.REFUSE if job.request.prompt == "refused" else Decision.ACCEPT
            job.own.drawn = np.zeros((2, 2, 3), np.uint8)
            job.own.attempts.append(Attempt(0, job.avoidance, {}, 2, 2, decision=decision))

    def wants_redraft(self, job):
        return self.judging.wants_redraft(job)

    def ending(self, job):
        return self.judging.ending(job)

    def _run(self, stage):
        return Trajectory(plan_rows(stage), (0.0,) * stage.steps)

    def _fail(self, stage, jobs):
        if any(job.request.prompt == stage for job in jobs):
            raise torch.OutOfMemoryError(stage)


@pytest.fixture
def make_engine(tiny_checkpoint):
    components = []

    def make(**options):
        ticks = itertools.count()
        options = {"limits": Limits(waiting=40), "clock": lambda: float(next(ticks))} | options
        components[:] = components or [Engine.from_pretrained(tiny_checkpoint).components]
        engine = Engine(components[0], **options)
        stage = NoStage(engine.stages.judging)
        for field in dataclasses.fields(engine.stages):
            setattr(engine.stages, field.name, stage)
        return engine

    return make


def traffic(rng):
    while True:
        yield GenerationRequest(
            prompt=rng.choice(FATES),
            num_images=rng.choice((1, 1, 1, 2, 3)),
            draft=Stage(steps=1),
            final=Stage(steps=rng.randint(1, 2)),
            priority=rng.randint(0, 2),
            timeout=rng.choice((None, None, 200.0)),
            similarity=SimilarityPolicy(limits={}, retries=1),
        )


def make_tables(engine):
    """Have the tables of solvers made, which is done once, and kept."""
    for request in itertools.islice(traffic(random.Random(0)), 100):
        engine.admit(request)


def owned():
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in OWNED)


def assert_empty(engine):
    assert engine.pending == 0
    assert engine.scheduler.free_slots == engine.limits.slots
    assert not engine._lifecycle._since
    assert not engine._lifecycle._cancelled
    assert not engine.arenas._claims
    assert not engine._outbox._listeners
    assert not engine._outbox.collect()
    assert not engine.scheduler._boundary_since


@pytest.mark.slow
def test_ten_thousand_jobs_leave_nothing_behind(make_engine):
    engine, rng = make_engine(), random.Random(1)
    make_tables(engine)
    requests, before = traffic(rng), owned()
    verdicts, images, live = Counter(), 0, deque(maxlen=40)
    while images < JOBS or engine.pending:
        while images < JOBS and engine.pending < 30:
            request = next(requests)
            live.append(engine.submit(request))
            images += request.num_images
        if rng.random() < 0.1:
            engine.cancel(rng.choice([*live, 10**9]))
        verdicts.update(event.result.verdict for event in engine.step() if event.result is not None)
    assert sum(verdicts.values()) == images, "each image ended once"
    fates = (Verdict.ACCEPTED, Verdict.REFUSED, Verdict.FAILED, Verdict.CANCELLED, Verdict.EXPIRED)
    assert all(verdicts[fate] > 50 for fate in fates), verdicts
    assert_empty(engine)
    assert owned() == before


def test_what_outlives_a_batch_is_no_view_of_it(tiny_checkpoint):
    """A view keeps the memory of its whole batch: a prompt that stays in use would hold eight prompts' worth."""
    engine = Engine.from_pretrained(tiny_checkpoint)
    requests = [GenerationRequest(prompt=f"{i} stars", draft=Stage(steps=1), final=Stage(steps=2)) for i in range(4)]
    for request in requests:
        engine.submit(request)
    while not all(job.own is not None and job.own.attempts for job in engine.scheduler.jobs.values()):
        kept = [job.shared for job in engine.scheduler.jobs.values() if job.shared.reference is not None]
        engine.step()
    assert len(kept) == 4
    for shared in kept:
        assert shared.reference.untyped_storage().nbytes() == shared.reference.nbytes
        assert shared.labels.base is None
        assert shared.drawn.base is None
    assert len(engine.stages.encoding._texts) == 5
    for text in engine.stages.encoding._texts.values():
        layers = (*text.unet, *text.controlnet)
        assert {layer.untyped_storage().nbytes() for layer in layers} == {sum(layer.nbytes for layer in layers)}


def test_cancelling_what_is_not_there_is_forgotten(make_engine):
    engine = make_engine()
    id = engine.submit(next(traffic(random.Random(2))))
    engine.drain()
    for unknown in (id, 10**9):
        engine.cancel(unknown)
    assert_empty(engine)


def test_streams_leave_no_task_no_queue_and_no_thread(make_engine):
    engine, rng = make_engine(), random.Random(3)
    requests, verdicts = traffic(rng), Counter()

    async def one(served, request):
        try:
            async for event in served.stream(request):
                if event.result is not None:
                    verdicts[event.result.verdict] += 1
                if rng.random() < 0.02:
                    break
        except EngineBusyError:
            verdicts["busy"] += 1

    async def main():
        async with AsyncEngine(engine) as served:
            for _ in range(25):
                await asyncio.gather(*(one(served, next(requests)) for _ in range(40)))
        assert not served._streams
        assert asyncio.all_tasks() == {asyncio.current_task()}

    make_tables(engine)
    before, threads = owned(), threading.active_count()
    asyncio.run(main())
    assert sum(verdicts.values()) > 900
    assert_empty(engine)
    assert threading.active_count() == threads
    assert owned() == before
