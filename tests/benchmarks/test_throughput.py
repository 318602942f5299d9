import json

import numpy as np
import pytest

from twig.benchmarks import throughput
from twig.benchmarks.clocks import ClockKind, Spent
from twig.benchmarks.contenders import CONTINUOUS, DIFFUSERS, REFERENCE, STATIC
from twig.benchmarks.printing import line


@pytest.fixture(scope="module")
def rows(setup):
    return list(throughput.measure(setup, throughput.Plan(steps=2, rounds={"single": 1}, repeats=1)))


def test_every_contender_has_its_speed_and_quality_in_a_row(rows):
    found = {row["contender"]: row for row in rows if row["measure"] == "closed"}
    assert set(found) == {REFERENCE, DIFFUSERS, STATIC, CONTINUOUS}
    assert found[REFERENCE]["speedup"] == 1
    for row in found.values():
        assert row["ssim_lowest"] > 0.999
        assert row["pictures_per_second"] > 0
        assert row["rows_per_second"] == pytest.approx(8 * row["pictures_per_second"])
        assert set(row["wall_seconds"]) == set(row["cpu_seconds"]) == {"p20", "p50", "p80"}


def test_the_gate_comes_before_any_timing(rows):
    measures = [row["measure"] for row in rows]
    assert measures[:4] == ["gate"] * 4
    assert set(measures) == {"gate", "closed", "scheduling", "batch", "cost", "flops"}


def test_costs_can_be_measured_alone(setup):
    plan = throughput.Plan(steps=2, rounds={"single": 1}, repeats=1)
    assert {row["measure"] for row in throughput.batch_rows(setup, plan)} == {"batch", "cost", "flops"}


def test_rows_are_plain_and_printable(rows):
    for row in rows:
        json.dumps(row)
        assert str(row["measure"]) in line(row)


def test_rounds_end_with_their_time_but_are_two_at_least():
    drawn = np.zeros((16, 16, 3), np.uint8)
    racers = {REFERENCE: lambda requests: [drawn] * len(requests)}
    assert len(throughput.race(racers, 1, 2, rounds=5)[REFERENCE].spent) == 5
    assert len(throughput.race(racers, 1, 2, rounds=5, seconds=0.0)[REFERENCE].spent) == 2


def test_speedup_is_a_ratio_within_rounds():
    # The second round met a machine twice as slow: that is no one's merit.
    fast, slow = ([Spent(s, s) for s in seconds] for seconds in ((1.0, 2.0), (3.0, 6.0)))
    quality = [{"ssim_lowest": 1.0, "ssim_mean": 1.0}] * 2
    records = {REFERENCE: throughput.Record(slow, quality), CONTINUOUS: throughput.Record(fast, quality)}
    reference, engine = throughput.closed_rows("batch-8", records, 5, ClockKind.WALL)
    assert engine["speedup"] == 3
    assert engine["pictures_per_second"] == pytest.approx(8 / np.median([1, 2]))
    assert reference["speedup"] == 1
