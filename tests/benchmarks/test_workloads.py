import numpy as np
import pytest

from twig.benchmarks.costs import Costs, Line
from twig.benchmarks.simulate import Device
from twig.benchmarks.workloads import Arrival, closed, mixed, poisson
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, InitialNoise, MovedControl
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import ContinuousPolicy
from twig.engine.estimates import rows_of

FREE = Line(0.0, 0.0)
ROWS_ONLY = Costs(Line(0.0, 1.0), FREE, FREE, FREE, FREE, buckets=tuple(range(1, 9)))
"""A second for each row of the UNet, and nothing else."""

ANY = SimilarityPolicy(limits={}, retries=0)


def test_rounds_of_a_closed_batch_share_no_request():
    first, second = closed(8, 20), closed(8, 20, round=1)
    assert len({(r.prompt, r.seed) for r in first + second}) == 16
    assert closed(8, 20) == first
    assert {rows_of(r) for r in first} == {80}


def test_mixed_requests_span_steps_and_guidance():
    stages = [stage for r in mixed(200, ANY) for stage in (r.draft, r.final)]
    assert {s.steps for s in stages} == set(range(8, 51))
    assert {s.guidance_scale for s in stages} == {1.0, 2.5, 5.0, 7.5}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(
    "noise", [None, InitialNoise(sharpness_steps=2), InitialNoise(resample=0.5, sharpness_steps=0)]
)
@pytest.mark.parametrize("control", [None, MovedControl(negative=0.5, rows="both")])
def test_rows_are_counted_as_the_engine_bills_them(setup, noise, control, guidance):
    stage = Stage(steps=5, guidance_scale=guidance)
    policy = Avoidance(delayed_guidance=DelayedGuidance(stop=0.4), initial_noise=noise, moved_control=control)
    request = GenerationRequest(prompt="a star", draft=stage, final=stage, avoidance=policy, similarity=ANY)
    (result,) = setup.models.engine(ContinuousPolicy(), setup.limits).generate(request)
    assert rows_of(request) == result.rows
    device = Device(ROWS_ONLY, setup.limits, ContinuousPolicy(), failing=0.0, seed=0)
    device.submit(0, Arrival(0.0, request))
    device.run_until(float("inf"))
    assert device.finished == {0: pytest.approx(result.rows)}, "and simulated so"


@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_poisson_arrivals_come_in_order_at_their_rate(rate):
    arrivals = poisson(mixed(400, ANY), rate)
    gaps = np.diff([0.0, *(a.at for a in arrivals)])
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.15)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.15)
