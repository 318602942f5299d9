import dataclasses

import pytest

from twig.benchmarks import latency
from twig.benchmarks.contenders import CONTINUOUS, STATIC
from twig.benchmarks.plots import save_curves
from twig.benchmarks.service import serve
from twig.benchmarks.workloads import mixed, poisson
from twig.engine.api.request import SimilarityPolicy
from twig.engine.batching.scheduler import ContinuousPolicy

PLAN = latency.Plan(steps=2, rounds=1, mixed_steps=(2, 3), requests=3, loads=(0.5, 0.9))


@pytest.fixture(scope="module")
def rows(setup):
    return list(latency.traffic(setup, PLAN))


def test_both_policies_serve_everything_at_every_load(rows):
    loads = [(row["contender"], row["load"]) for row in rows if row["measure"] == "poisson"]
    assert loads == [(STATIC, 0.5), (CONTINUOUS, 0.5), (CONTINUOUS, 0.9), (STATIC, 0.9)], "taking turns at going first"
    for row in rows[:-2]:
        assert row["failed"] == 0
        assert row["latency"]["p50"] <= row["latency"]["p95"]
    equal = rows[-2:]
    assert [(row["measure"], row["load"]) for row in equal] == [("equal-p95", 0.5), ("equal-p95", 0.9)]
    assert all(row["ratio"] == pytest.approx(row[CONTINUOUS] / row[STATIC]) for row in equal)


def test_capacity_is_that_of_a_full_engine():
    """Two slots, a request done each second; the first two come later and the last three later still."""
    finished = [5.0, 6.0, *(6.0 + i for i in range(1, 9)), 17.0, 20.0, 23.0]
    assert latency.full_rate(finished[:-1], slots=2) == pytest.approx(1)
    assert latency.full_rate([2.0, 4.0], slots=2) == pytest.approx(0.5), "too few to leave any out"


def test_plot_shows_each_curve(rows, tmp_path):
    pytest.importorskip("matplotlib")
    series = {name: latency.curve(rows, name) for name in (STATIC, CONTINUOUS)}
    assert all(len(points) == 2 for points in series.values())
    assert save_curves(tmp_path / "made" / "latency.png", series, "title", "x", "y", logarithmic=True)
    assert (tmp_path / "made" / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_thin_traffic_costs_no_waiting(setup):
    """Requests minutes apart are served in the time that they take."""
    requests = mixed(2, SimilarityPolicy(limits={"ssim": -1.0}, retries=1), (2, 3))
    served = serve(setup.models, ContinuousPolicy(), setup.limits, poisson(requests, 1e-3), setup.clock)
    assert served.makespan > 60 > served.spent.wall
    assert max(served.latencies) < 60
    assert served.retries == 2
    assert served.as_row()["pictures_per_second"] == pytest.approx(2 / served.makespan)


@pytest.mark.parametrize(("minutes", "requests"), [(None, 80), (100.0, 80), (7.0, 40), (0.1, 20)])
def test_minutes_limit_the_requests(minutes, requests):
    assert dataclasses.replace(latency.FULL, minutes=minutes).affordable(1.0) == requests


@pytest.mark.parametrize(
    ("limit", "expected"), [(2.0, (1.5, True)), (3.0, (2.0, True)), (9.0, (4.0, False)), (0.5, (1.0, False))]
)
def test_rate_that_holds_a_latency_lies_on_the_curve(limit, expected):
    assert latency.rate_at([(1.0, 1.0), (2.0, 3.0), (4.0, 5.0)], limit) == expected
