"""Places are looked for beside the steps: others go on, who waits can be stopped, and no picture hangs on the order."""

import threading

import numpy as np
import pytest
from small_requests import NEVER, request, same

from twig.engine.api.event import State
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.result import Verdict
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.stages import placing

LONG = 60  # seconds: nobody waits as long
PLAIN = Avoidance.off()


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint).components


@pytest.fixture
def engine(components):
    return Engine(components, limits=Limits(slots=8, rows=8), placers=2)


@pytest.fixture
def held(monkeypatch):
    """Hold every search up until it is let go, by seed or all; which were begun."""
    return Held(monkeypatch)


class Held:
    """Where every search is made to wait."""

    def __init__(self, monkeypatch):
        self.begun, self._gates, self._lock = [], {}, threading.Lock()
        search = placing.moved_labels

        def slow(labels, background, control, seed, avoided):
            with self._lock:
                self.begun.append(seed)
                gate = self._gates.setdefault(seed, threading.Event())
            assert gate.wait(LONG)
            return search(labels, background, control, seed, avoided)

        monkeypatch.setattr(placing, "moved_labels", slow)

    def forget(self):
        """Hold up again what was let go."""
        self.begun.clear()
        self._gates.clear()

    def let_go(self, seed=None):
        with self._lock:
            gates = list(self._gates.values()) if seed is None else [self._gates[seed]]
        for gate in gates:
            gate.set()


def stepped(engine, until):
    """Events up to the step at which `until()`."""
    events = []
    for _ in range(10_000):
        if until():
            return events
        events += engine.step()
    raise AssertionError("it never came so far")


def states(engine):
    return {job.request_id: job.state for job in engine.scheduler.jobs.values()}


def placed(engine, id):
    """Step until a request is in search of places."""
    return stepped(engine, lambda: states(engine).get(id) is State.PLACING)


def test_others_are_drawn_while_one_waits_for_its_places(engine, held):
    waiting = engine.submit(request(seed=1))
    placed(engine, waiting)
    other = engine.submit(request("tree", seed=2, avoidance=PLAIN))
    events = stepped(engine, lambda: other not in states(engine))
    assert [event.result.verdict for event in events if event.result is not None] == [Verdict.ACCEPTED]
    assert states(engine) == {waiting: State.PLACING}
    assert (engine.stats().placing, engine.stats().resident) == (1, 1)
    assert engine.queued_rows > 0, "the final it will draw"
    held.let_go()
    assert [event.result.verdict for event in engine.drain() if event.result is not None] == [Verdict.ACCEPTED]
    assert engine.stats().placing == 0


def test_where_nothing_else_is_to_be_done_the_loop_waits(engine, held):
    placed(engine, engine.submit(request(seed=1)))
    looked = []
    wait = engine.stages.placing.wait
    engine.stages.placing.wait = lambda seconds: (looked.append(seconds), held.let_go(), wait(LONG))
    engine.step()
    assert looked, "a step without a batch waits for a place that is found"
    assert engine.drain()[-1].result.verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("last", [False, True])
def test_who_waits_for_places_is_cancelled_at_once(engine, held, last):
    id = engine.submit(request(seed=1))
    placed(engine, id)
    if last:
        held.let_go()
    engine.cancel(id)
    (event,) = engine.step()
    assert event.result.verdict is Verdict.CANCELLED
    assert (engine.pending, len(engine.stages.placing)) == (0, 0)
    assert engine.scheduler.free_slots == engine.limits.slots
    held.let_go()
    assert engine.drain() == []
    assert engine.generate(request("tree", avoidance=PLAIN))[0].verdict is Verdict.ACCEPTED


def test_who_waits_for_places_expires(components, held):
    now = [0.0]
    engine = Engine(components, placers=1, clock=lambda: now[0])
    placed(engine, engine.submit(request(seed=1, timeout=5.0)))
    now[0] = 6.0
    (event,) = engine.step()
    assert event.result.verdict is Verdict.EXPIRED
    assert (engine.pending, len(engine.stages.placing)) == (0, 0)
    held.let_go()


def test_closing_waits_for_places_until_the_deadline(engine, held):
    placed(engine, engine.submit(request(seed=1)))
    (event,) = engine.close(deadline=0.05)
    assert event.result.verdict is Verdict.CANCELLED
    held.let_go()


def test_closing_without_a_deadline_finishes_what_waits_for_places(engine, held):
    placed(engine, engine.submit(request(seed=1)))
    held.let_go()
    assert engine.close()[-1].result.verdict is Verdict.ACCEPTED


@pytest.mark.parametrize(("placers", "beside"), [(None, False), (0, False), (2, True)])
def test_a_processors_cores_are_left_to_its_networks(components, monkeypatch, placers, beside):
    search, threads = placing.moved_labels, []
    monkeypatch.setattr(placing, "moved_labels", lambda *a: (threads.append(threading.get_ident()), search(*a))[1])
    Engine(components, placers=placers).generate(request())
    assert [thread != threading.get_ident() for thread in threads] == [beside]


@pytest.mark.parametrize("placers", [0, 2])
def test_a_search_that_fails_fails_its_image_alone(components, monkeypatch, placers):
    engine, search, made = Engine(components, placers=placers), placing.moved_labels, []

    def faulty(labels, background, control, seed, avoided):
        made.append(seed)
        if len(made) == 1:
            raise MemoryError("no room to look for places")
        return search(labels, background, control, seed, avoided)

    monkeypatch.setattr(placing, "moved_labels", faulty)
    guilty, other = engine.generate(request(seed=3, num_images=2))
    assert (guilty.verdict, other.verdict) == (Verdict.FAILED, Verdict.ACCEPTED)
    assert "no room to look for places" in guilty.error
    assert (engine.pending, len(engine.stages.placing)) == (0, 0)
    assert engine.scheduler.free_slots == engine.limits.slots


def test_maps_are_the_same_whichever_search_ends_first(components, held):
    """Images and retries of a request too; pictures as far as company goes, which is rounding."""
    batch = [request(seed=1, num_images=2, similarity=NEVER), request("tree", seed=2)]
    first, last = (results_in_order(Engine(components, placers=4), batch, held, order) for order in (0, -1))
    assert first.keys() == last.keys()
    assert len(first) == 3
    for key, one in first.items():
        assert np.array_equal(one.control_map, last[key].control_map)
        assert [attempt.seed for attempt in one.attempts] == [attempt.seed for attempt in last[key].attempts]
        assert same(one, last[key], tolerance=1)


def results_in_order(engine, batch, held, order):
    """Results of a batch; where all wait, the search that began first (order 0) or last (-1) of those left ends."""
    held.forget()
    ids, found, freed = [engine.submit(each) for each in batch], {}, set()
    while engine.pending:
        for event in engine.step():
            if event.result is not None:
                found[ids.index(event.id), event.index] = event.result
        searched = [seed for seed in held.begun if seed not in freed]
        if searched and set(states(engine).values()) == {State.PLACING}:
            freed.add(searched[order])
            held.let_go(searched[order])
    return found
