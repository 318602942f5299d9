import numpy as np
import pytest

from twig.benchmarks.contenders import (
    CONTINUOUS,
    DIFFUSERS,
    REFERENCE,
    STATIC,
    DiffusersPipelines,
    Disagreement,
    contenders,
    gate,
    quality,
)
from twig.benchmarks.workloads import closed, mixed
from twig.engine.api.request import SimilarityPolicy


@pytest.fixture(scope="module")
def racers(setup):
    return contenders(setup.models, setup.limits)


@pytest.mark.parametrize("steps", [2, 3])
def test_everyone_draws_the_reference_pictures(racers, steps):
    found = gate(racers, closed(2, steps), least_ssim=0.999)
    assert set(found) == {REFERENCE, DIFFUSERS, STATIC, CONTINUOUS}
    assert all(agreed["largest_difference"] <= 1 for agreed in found.values())


def test_engines_draw_mixed_requests_as_the_reference_does(racers):
    mixable = {name: racers[name] for name in (REFERENCE, STATIC, CONTINUOUS)}
    gate(mixable, mixed(2, SimilarityPolicy(limits={}, retries=0), (2, 3)), least_ssim=0.999)


def test_nothing_is_timed_while_a_picture_differs(racers):
    def wrong(requests):
        return [255 - picture for picture in racers[REFERENCE](requests)]

    with pytest.raises(Disagreement, match="wrong"):
        gate({REFERENCE: racers[REFERENCE], "wrong": wrong}, closed(1, 2), least_ssim=0.999)


def test_pipelines_refuse_what_one_call_cannot_mix(setup):
    pipelines = DiffusersPipelines(setup.models.plain)
    with pytest.raises(ValueError, match="one setting"):
        pipelines([*closed(1, 3), *closed(1, 4)])
    with pytest.raises(ValueError, match="cannot delay guidance"):
        pipelines(mixed(1, SimilarityPolicy(limits={})))


def test_quality_names_the_worst_picture():
    rng = np.random.default_rng(0)
    good, other = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    found = quality([good, good], [good, other])
    assert found["ssim_lowest"] < 0.1 < 0.4 < found["ssim_mean"] < 0.6
    assert quality([good], [good]) == {"ssim_lowest": 1.0, "ssim_mean": 1.0, "largest_difference": 0}
