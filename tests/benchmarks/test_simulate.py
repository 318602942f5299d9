from dataclasses import replace

import pytest

from twig.benchmarks.costs import Costs, Line
from twig.benchmarks.gpu.models import SMALL
from twig.benchmarks.gpu.prediction import predicted_costs, with_measured_steps
from twig.benchmarks.gpu.roofline import Machine
from twig.benchmarks.simulate import POLICIES, Device, Fleet, held_row
from twig.benchmarks.workloads import Arrival, mixed
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import ContinuousPolicy, Limits

BUCKETS = (1, 2, 4, 8, 16)
COSTS = Costs(
    denoise=Line(0.02, 0.005), control=Line(0.01, 0.002), encode=Line(0.003, 0.001), segment=Line(0.02, 0.01),
    judge=Line(0.02, 0.01), buckets=BUCKETS,
)  # fmt: skip
REQUESTS = mixed(100, SimilarityPolicy(limits={}, retries=2), (4, 20))


def fleet(policy="continuous", devices=1, failing=0.25):
    return Fleet(COSTS, Limits(slots=8, rows=16), POLICIES[policy], devices, failing)


def test_a_lone_request_takes_the_sum_of_its_batches():
    stage = Stage(steps=10, guidance_scale=1)
    request = GenerationRequest(prompt="a", draft=stage, final=stage)
    device = Device(COSTS, Limits(), ContinuousPolicy(), failing=0.0, seed=0)
    device.submit(0, Arrival(5.0, request))
    device.run_until(float("inf"))
    wanted = COSTS.encode(1) + 20 * COSTS.denoise(1) + 10 * COSTS.control(1) + COSTS.segment(1) + COSTS.judge(1)
    assert device.finished == {0: pytest.approx(5.0 + wanted)}


def test_a_pipeline_call_hands_out_its_pictures_together():
    requests = [
        GenerationRequest(prompt="a", draft=stage, final=stage) for stage in (Stage(steps=steps) for steps in (2, 9))
    ]

    def finished(policy):
        device = Device(COSTS, Limits(), POLICIES[policy](), failing=0.0, seed=0)
        for id, request in enumerate(requests):
            device.submit(id, Arrival(0.0, request))
        device.run_until(float("inf"))
        return device.finished

    early, late = finished("static").values()
    assert early < late
    assert set(finished("static-call").values()) == {late}


def test_failing_finals_are_tried_again_and_then_refused():
    never, always = fleet(failing=0.0).alone(REQUESTS), fleet(failing=1.0).alone(REQUESTS)
    assert 1.5 * never < always < 3 * never


def test_every_request_is_served_once_and_none_before_its_own_work():
    outcome = fleet(devices=3).serve(REQUESTS, rate=4.0)
    assert len(outcome.latencies) == 0.8 * len(REQUESTS)
    assert min(outcome.latencies) > 8 * COSTS.denoise(1)


def test_latency_grows_with_load():
    slow, fast = (fleet().serve(REQUESTS, rate).p95 for rate in (0.1, 2.0))
    assert fast > 1.5 * slow


def test_continuous_holds_more_than_static_and_more_devices_more_than_one():
    limit = 3 * fleet().alone(REQUESTS)

    def held(**options):
        one = fleet(**options)
        return held_row("any", one, len(REQUESTS), limit, one.holds(REQUESTS, limit))["rate"]

    continuous = held()
    assert 0 < held(policy="static") < continuous
    assert held(devices=4) > 2.5 * continuous


def test_where_rows_share_little_fewer_a_step_keep_requests_waiting_less():
    costs = replace(COSTS, denoise=Line(0.001, 0.01), control=Line(0.0005, 0.003))

    def waited(policy):
        outcome = Fleet(costs, Limits(), POLICIES[policy], 1, 0.25).serve(REQUESTS, rate=1.0)
        return sum(outcome.latencies) / len(outcome.latencies), outcome.p95

    (mean, p95), (all_mean, all_p95) = waited("continuous"), waited("continuous, all rows that fit")
    assert mean < 0.85 * all_mean
    assert p95 < 0.9 * all_p95


def test_costs_predicted_for_a_device_are_of_its_networks_and_its_speed():
    usual = predicted_costs(Machine(), 4, SMALL)
    slower = predicted_costs(replace(Machine(), launch=1e-3), 4, SMALL)
    assert usual.buckets == (1, 2, 4)
    assert 0 < usual.step(4, 0) < usual.step(4, 4)
    assert usual.judge(4) > 0
    assert slower.step(4, 4) > 10 * usual.step(4, 4)


def test_steps_that_a_device_measured_take_the_place_of_predicted_ones():
    measured = [
        {
            "measure": "step",
            "rows": rows,
            "control_rows": control,
            "ms": 2 + 3 * rows + (1 + 2 * control if control else 0),
        }
        for rows in (2, 4, 8)
        for control in (0, rows // 2, rows)
    ]
    costs = with_measured_steps(COSTS, [{"measure": "part"}, *measured])
    assert costs.step(4, 0) == pytest.approx(0.014)
    assert costs.step(4, 4) == pytest.approx(0.023)
    assert costs.judge == COSTS.judge
    with pytest.raises(ValueError, match=r"twig\.benchmarks\.gpu"):
        with_measured_steps(COSTS, measured[:3])
