"""How many pictures share a step, where a device's costs would have them drawn one after the other."""

import pytest
from small_requests import request

from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load

STEPS = 5  # of a draft and a final


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture
def engine(components):
    """One that has learned that a step takes as much longer as it has more rows, on a clock that stands still."""
    with Engine(components, limits=Limits(slots=4, rows=8), clock=lambda: 0.0) as engine:
        for rows in (1, 2, 4, 8) * 40:
            engine.scheduler.pace.stepped(((16, 16), False), rows, rows, 0, 100.0 * rows)
        yield engine


def steps(engine):
    return engine.stats().steps


def test_requests_of_their_own_are_drawn_one_after_the_other(engine):
    for seed in range(2):
        engine.submit(request(seed=seed))
    engine.drain()
    assert steps(engine) == 2 * STEPS


@pytest.mark.parametrize("asked", [[request(seed=0), request(seed=1)], [request(num_images=2)]])
def test_what_generate_is_given_is_drawn_together(engine, asked):
    engine.generate(asked)
    assert steps(engine) <= STEPS + 1, "an image that forks from a draft may come a step late"


def test_what_is_submitted_to_be_waited_for_as_a_whole_is_drawn_together(engine):
    for seed in range(2):
        engine.submit(request(seed=seed), together=True)
    engine.drain()
    assert steps(engine) == STEPS


def test_an_engine_learns_from_its_own_steps(components):
    with Engine(components, limits=Limits(slots=4, rows=8)) as engine:
        engine.generate([request(seed=seed, steps=12) for seed in range(4)])
        (cost,) = engine.scheduler.pace._costs.values()
        assert cost.steps > 0
        assert cost.base + cost.each > 0
