import json

import pytest

from twig.benchmarks.clocks import ClockKind
from twig.benchmarks.costs import CostMeter, Costs, Line
from twig.engine.batching.scheduler import ContinuousPolicy


@pytest.fixture(scope="module")
def meter(setup):
    return CostMeter(setup.models.engine(ContinuousPolicy(), setup.limits), ClockKind.CPU, repeats=1)


def test_line_is_fitted_exactly_where_cost_is_linear():
    line = Line.fit({n: 0.5 + 0.25 * n for n in (1, 2, 4, 8)})
    assert line.base == pytest.approx(0.5)
    assert line.each == pytest.approx(0.25)
    assert line.r2 == pytest.approx(1)
    assert line.worst == pytest.approx(0)
    assert line(0) == 0
    bent = Line.fit({1: 3.0, 2: 1.5, 3: 3.0})
    assert bent.r2 == pytest.approx(0)
    assert bent.worst == pytest.approx(1 / 1.5), "2.5 where 1.5 was measured"


def test_a_step_costs_its_padded_rows():
    costs = Costs(*[Line(1.0, 1.0)] * 5, buckets=(1, 4))
    assert costs.step(3, 0) == 5
    assert costs.step(3, 1) == 7


def test_measured_costs_survive_the_file(meter):
    costs, points = meter.measure()
    assert {(p["batch"], p["size"]) for p in points} >= {("denoise", 1), ("denoise", 2), ("judge", 1)}
    assert all(p["seconds"] > 0 for p in points if p["batch"] != "control")
    assert Costs.from_rows(json.loads(json.dumps(row)) for row in costs.as_rows()) == costs


def test_a_file_without_a_cost_is_refused(meter):
    with pytest.raises(ValueError, match="judge"):
        Costs.from_rows([row for row in Costs(*[Line(1.0, 1.0)] * 5, (1,)).as_rows() if row["batch"] != "judge"])


def test_operations_are_counted(meter):
    parameters = sum(p.numel() for p in meter.components.unet.parameters())
    assert meter.flops_per_row() > 2 * parameters
