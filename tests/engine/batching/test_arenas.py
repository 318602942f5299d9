"""What shapes take on the device stays under a budget, and what has a job in it stays."""

import pytest

from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching.arenas import Room
from twig.engine.batching.job import Job
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine

ONE, TWO, THREE = (16, 16), (16, 24), (24, 16)
LIMITS = Limits(slots=4, rows=8)


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint).components


@pytest.fixture(scope="module")
def sizes(components):
    """Bytes by shape."""
    arenas = Engine(components, limits=LIMITS).arenas
    return {shape: arenas._nbytes(shape, Room()) for shape in (ONE, TWO, THREE)}


def request(**changes):
    return GenerationRequest(
        **{"prompt": "a star", "draft": Stage(steps=2), "final": Stage(steps=3)} | changes,
        similarity=SimilarityPolicy(limits={}, retries=0),
    )


def job(id, shape):
    return Job(id, id, request(), shape, 0.0)


def test_bytes_are_counted_before_they_are_taken(components, sizes):
    loop = Engine(components, limits=LIMITS).arenas.loop(TWO)
    assert sizes[TWO] == loop.nbytes > 0
    assert sizes[TWO] > sizes[ONE]


def test_the_least_recently_used_goes_first(components, sizes):
    arenas = Engine(components, limits=LIMITS, arena_budget=sizes[ONE] + sizes[TWO]).arenas
    arenas.loop(ONE)
    arenas.loop(TWO)
    kept = arenas.loop(ONE)
    arenas.loop(THREE)
    assert arenas.shapes == [ONE, THREE]
    assert arenas.loop(ONE) is kept
    assert arenas.nbytes <= arenas.budget


def test_what_has_a_job_stays_and_a_shape_that_would_not_fit_waits(components, sizes):
    arenas = Engine(components, limits=LIMITS, arena_budget=sizes[ONE] + sizes[TWO]).arenas
    first, second, third = job(0, ONE), job(1, TWO), job(2, THREE)
    assert arenas.claim(first)
    kept = arenas.loop(ONE)
    assert arenas.claim(second)
    arenas.loop(TWO)
    assert not arenas.claim(third)
    assert arenas.claim(job(3, ONE)), "a shape that is there already takes nothing more"
    arenas.release(second)
    assert arenas.claim(third)
    arenas.loop(THREE)
    assert arenas.shapes == [ONE, THREE]
    assert arenas.loop(ONE) is kept


def test_one_shape_is_served_whatever_it_takes(components):
    engine = Engine(components, limits=LIMITS, arena_budget=1)
    results = engine.generate([request(), request(width=96), request(height=96)])
    assert [result.verdict for result in results] == [Verdict.ACCEPTED] * 3
    assert len(engine.arenas.shapes) == 1


def test_many_sizes_stay_under_the_budget_and_draw_the_same(components, sizes):
    batch = [request(width=w, height=h, seed=w + h) for w in (64, 80, 96) for h in (64, 96)]
    engine = Engine(components, limits=LIMITS, arena_budget=2 * sizes[TWO])
    for wanted in batch:
        engine.submit(wanted)
    results, most = {}, 0
    while engine.pending:
        for event in engine.step():
            if event.result is not None:
                results[event.id] = event.result
        most = max(most, engine.arenas.nbytes)
    assert 0 < most <= engine.arenas.budget
    assert engine.stats().memory["arenas"] == engine.arenas.nbytes
    for id, wanted in enumerate(Engine(components, limits=LIMITS).generate(batch)):
        assert results[id].verdict is Verdict.ACCEPTED, results[id].error
        assert results[id].image.tobytes() == wanted.image.tobytes()


def test_a_loop_takes_its_graphs_along(components, sizes):
    engine = Engine(components, limits=LIMITS, arena_budget=sizes[TWO])
    loop = engine.arenas.loop(ONE)
    keys = [key for _, key, _ in loop._bodies(loop.buckets)]
    graphs = engine.graphs._graphs
    graphs.update(dict.fromkeys([*keys, "another"]))
    engine.graphs.stats.captured = len(graphs)
    engine.arenas.loop(TWO)
    assert list(graphs) == ["another"]
    assert engine.graphs.stats.captured == 1


def test_a_warm_up_names_the_shapes_that_stayed(components, sizes):
    engine = Engine(components, limits=LIMITS, arena_budget=sizes[TWO] + sizes[THREE])
    assert engine.warmup([(64, 64), (64, 96), (96, 64)])["shapes"] == [TWO, THREE]


def test_memory_for_cached_steps_is_taken_when_a_request_has_them(components, sizes):
    engine = Engine(components, limits=LIMITS)
    engine.generate(request())
    assert engine.arenas.nbytes == sizes[ONE]
    engine.generate(request(final=Stage(steps=3, cache_interval=2)))
    assert engine.arenas.nbytes == engine.arenas._nbytes(ONE, Room(deep=True)) > sizes[ONE]
    prepared = Engine(components, limits=LIMITS)
    prepared.warmup(cached_steps=True)
    assert prepared.arenas.nbytes == engine.arenas.nbytes
