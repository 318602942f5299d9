"""Guidance that waits: the size of the draft's, step by step, and where it says that the wait may end."""

import numpy as np
import pytest

from twig.benchmarks.reference import pipeline as reference
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Solver, Stage
from twig.engine.avoidance.conditioning import transition_point
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load

PROMPTS = ("a red star", "the moon", "a blue house", "tree")
JUDGED = SimilarityPolicy(limits={}, retries=0)


def request(prompt, solver=Solver.DDIM, steps=3, scale=5.0):
    draft = Stage(steps=steps, guidance_scale=scale, solver=solver)
    return GenerationRequest(
        prompt=prompt, seed=3, draft=draft, final=Stage(steps=2), avoidance=Avoidance.off(), similarity=JUDGED
    )


def magnitudes(engine, requests):
    """Magnitudes of each request, read when its draft is segmented."""
    found, segment = {}, engine.stages.segmenting.segment

    def spy(jobs):
        segment(jobs)
        found.update({job.request_id: job.shared.magnitudes for job in jobs})

    engine.stages.segmenting.segment = spy
    engine.generate(requests)
    return [found[id] for id in sorted(found)]


def test_they_are_the_distance_of_the_two_branches(tiny_checkpoint):
    batch = [request(p, s, steps=2 + i % 2) for i, (p, s) in enumerate(zip(PROMPTS, Solver, strict=False))]
    found = magnitudes(Engine.from_pretrained(tiny_checkpoint), batch)
    components = load(tiny_checkpoint)
    for one, measured in zip(batch, found, strict=True):
        np.testing.assert_allclose(measured, reference.draft(components, one).magnitudes, rtol=1e-3)


def test_a_draft_without_guidance_has_none(tiny_checkpoint):
    unguided, guided = magnitudes(Engine.from_pretrained(tiny_checkpoint), [request("tree", scale=1), request("tree")])
    assert unguided is None
    assert guided.shape == (3,)


@pytest.mark.parametrize(
    ("curve", "fraction"),
    [
        ([6, 5, 4, 3, 2, 1, 2, 3, 4, 5], 0.5),
        ([5, 6, 4, 3, 3, 4, 2, 3, 4, 5], 0.4),  # the first minimum, at the end of its floor
        ([6, 1, 2, 3, 4, 5, 6, 7, 8, 9], 0.1),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], None),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], None),
        ([3], None),
    ],
)
def test_a_draft_leaves_its_basin_where_guidance_is_least(curve, fraction):
    assert transition_point(np.array(curve, float)) == fraction


def test_detected_guidance_begins_there_but_never_after_its_stop():
    policy = DelayedGuidance(stop=0.3, start=0.1, detect=True)
    assert [policy.settled(t).stop for t in (0.05, 0.2, 0.7, None)] == [0.1, 0.2, 0.3, 0.3]
    assert not policy.settled(0.2).detect
    assert DelayedGuidance(stop=0.3).settled(0.1).stop == 0.3


def test_a_retry_waits_longer_than_what_was_detected():
    retried = Avoidance(delayed_guidance=DelayedGuidance(stop=0.2, detect=True)).escalated(1).settled(0.05)
    assert retried.delayed_guidance.stop == pytest.approx(0.3)


def test_an_attempt_says_what_was_detected(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint)
    policy = Avoidance.off().model_copy(update={"delayed_guidance": DelayedGuidance(stop=0.4, detect=True)})
    segment = engine.stages.segmenting.segment

    def spy(jobs):
        segment(jobs)
        for job in jobs:
            job.shared.magnitudes = np.array([4.0, 3.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0])

    engine.stages.segmenting.segment = spy
    wanted = request("tree").model_copy(update={"avoidance": policy, "final": Stage(steps=5)})
    (result,) = engine.generate(wanted)
    (attempt,) = result.attempts
    assert attempt.avoidance.delayed_guidance.stop == pytest.approx(0.2)
    assert attempt.rows == 1 + 4 * 2
