"""Repulsion from registered works: balls, their surface, and everything outside left as it was."""

import numpy as np
import pytest
import torch

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, Repulsion
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.avoidance.repulsion import repulsion
from twig.engine.engine import Engine
from twig.engine.judging.registry import Registry, Work
from twig.engine.models.checkpoint import load
from watched import final_latents

WORKS = torch.randn((12, 4, 16, 16), generator=torch.Generator().manual_seed(1))


def rms(latents):
    return latents.square().mean((1, 2, 3)).sqrt()


def pushed(predicted, works, radius, strength=1.0):
    count = len(predicted)
    return predicted + repulsion(predicted, works, torch.full((count,), radius), torch.full((count,), strength))


def test_a_picture_in_one_ball_lands_on_its_surface_and_with_more_strength_beyond():
    near = WORKS[:1] + 0.1
    landed = pushed(near, WORKS, 0.3)
    assert rms(landed - WORKS[:1]).item() == pytest.approx(0.3, rel=1e-4)
    assert torch.nn.functional.cosine_similarity((landed - near).flatten(), (near - WORKS[0]).flatten(), 0) > 0.999
    assert rms(pushed(near, WORKS, 0.3, 1.6) - WORKS[:1]).item() == pytest.approx(0.1 + 1.6 * 0.2, rel=1e-4)


def test_outside_every_ball_nothing_changes():
    far = WORKS[:1] + 0.5
    assert torch.equal(pushed(far, WORKS, 0.49), far)
    assert torch.equal(pushed(WORKS[:1] + 0.1, WORKS, 0.3, 0.0), WORKS[:1] + 0.1)


def test_a_picture_in_two_balls_leaves_both():
    works = torch.stack([WORKS[0], WORKS[0] + 0.2])
    between = WORKS[:1] + 0.08
    apart = pushed(between + 0.02 * WORKS[1:2], works, 0.3, 1.6)
    before, after = ([float(rms(latent - work[None])) for work in works] for latent in (between, apart))
    assert sum(after) > sum(before)


def test_a_work_itself_leaves_everything_finite():
    assert torch.isfinite(pushed(WORKS[:1], WORKS, 0.3)).all()


def test_rows_have_radii_of_their_own_and_company_changes_nothing():
    predicted = WORKS[:3] + 0.1
    radius, strength = torch.tensor([0.05, 0.3, 0.5]), torch.tensor([1.0, 1.0, 0.5])
    together = repulsion(predicted, WORKS, radius, strength)
    assert not together[0].any()
    for i in range(3):
        assert torch.equal(together[i], repulsion(predicted[i, None], WORKS, radius[i, None], strength[i, None])[0])


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return load(tiny_checkpoint)


def engine_with(components, works):
    named = tuple(Work(str(i), f"{i}.png", "", "") for i in range(len(works)))
    return Engine(components, registry=Registry(components.hashes["vae"], named, torch.eye(len(works), 320), works))


def request(policy, **changes):
    avoidance = Avoidance.off().model_copy(update={"repulsion": policy})
    defaults = {
        "prompt": "a red star", "seed": 5, "draft": Stage(steps=1, guidance_scale=1), "final": Stage(steps=4),
        "avoidance": avoidance, "similarity": SimilarityPolicy(limits={}, retries=0), "explain": True,
    }  # fmt: skip
    return GenerationRequest(**defaults | changes)


def test_a_final_keeps_away_from_a_registered_work(components):
    (plain, _), (result, _) = final_latents(Engine(components), [request(None)] * 2)
    assert not result.explanation.repulsion.any()
    engine = engine_with(components, torch.cat([plain[None], WORKS]))
    (kept, again), (explained, other) = final_latents(engine, [request(Repulsion(radius=0.3)), request(None)])
    assert torch.equal(again, plain), "who asks for no repulsion gets the plain picture, bit for bit"
    assert not other.explanation.repulsion.any()
    assert (kept - plain).square().mean().sqrt() > 0.25
    assert explained.explanation.repulsion.shape == (4,)
    assert explained.explanation.repulsion.any()
    assert explained.rows == result.rows, "it costs no row"
    pushes = explained.explanation.repulsion.copy()
    engine.generate([request(None), request(None)])
    assert np.array_equal(explained.explanation.repulsion, pushes), "a result is the user's, whoever runs afterwards"


def test_it_acts_in_its_window(components):
    (plain,), _ = final_latents(Engine(components), [request(None)])
    engine = engine_with(components, plain[None])
    _, (result,) = final_latents(engine, [request(Repulsion(radius=2.0, start=0.25, stop=0.5))])
    assert np.flatnonzero(result.explanation.repulsion).tolist() == [1]


def test_balls_widen_with_each_retry():
    policy = Avoidance(repulsion=Repulsion(radius=0.4))
    assert [policy.escalated(k).repulsion.radius for k in range(3)] == pytest.approx([0.4, 0.5, 0.6])


def test_it_needs_works_of_the_pictures_size(components):
    with pytest.raises(InvalidRequestError, match="needs registered works"):
        Engine(components).generate(request(Repulsion()))
    with pytest.raises(InvalidRequestError, match="registered at 64 x 64 pixels, the picture is 96 x 64"):
        engine_with(components, WORKS).generate(request(Repulsion(), width=96, height=64))


def test_company_does_not_matter(components):
    engine = engine_with(components, WORKS)
    wanted = request(Repulsion(radius=1.6))
    (one, _), _ = final_latents(engine, [wanted, request(None, seed=9)])
    (_, other), _ = final_latents(engine, [request(Repulsion(radius=1.2, strength=0.7), seed=11), wanted])
    assert torch.equal(one, other)
