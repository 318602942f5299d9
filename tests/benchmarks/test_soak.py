import pytest

from twig.benchmarks.soak import Leak, Tally, check, fill_text_cache, resident_bytes, soak, soak_row, trim
from twig.benchmarks.workloads import closed
from twig.engine.batching.scheduler import ContinuousPolicy


@pytest.fixture(scope="module")
def engine(setup):
    return setup.models.engine(ContinuousPolicy(), setup.limits)


@pytest.fixture(scope="module")
def tally(engine):
    fill_text_cache(engine, prompts=300)
    return soak(engine, seconds=0.2)


def test_everything_submitted_is_finished_and_nothing_kept(engine, tally):
    assert sum(tally.verdicts.values()) >= tally.submitted > 0
    assert tally.verdicts["failed"] == 0
    assert soak_row(engine, tally)["free_slots"] == engine.limits.slots
    check(engine, tally, allowed=2**30)


def test_growth_is_told(engine, tally):
    assert resident_bytes() > 2**20
    grown = Tally(memory=[(float(second), second * 2**20) for second in range(101)])
    assert grown.growth == 50 * 2**20
    with pytest.raises(Leak, match=r"50\.0 MiB"):
        check(engine, grown, allowed=2**20)


def test_memory_that_is_held_is_still_there_when_free_pages_are_given_back():
    trim()
    before = resident_bytes()
    held = bytearray(b"x" * 2**24)
    trim()
    assert resident_bytes() > before + 0.9 * len(held)


def test_both_ways_of_counting_memory_are_told(engine, tally):
    row = soak_row(engine, tally)
    assert len(row["memory"]) == len(row["memory_untrimmed"]) > 1


def test_a_tensor_of_each_request_would_be_told(engine, tally):
    with pytest.raises(Leak, match="500 tensors"):
        check(engine, Tally(memory=tally.memory, new_tensors=500), allowed=2**30)


def test_a_job_left_behind_is_told(engine, tally):
    (request,) = closed(1, 1)
    id = engine.submit(request)
    with pytest.raises(Leak, match="1 jobs"):
        check(engine, tally, allowed=2**30)
    engine.cancel(id)
    engine.drain()
