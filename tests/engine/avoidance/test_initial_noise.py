"""The noise a final starts from: its statistics, and the way out of where a prompt is recited."""

import numpy as np
import pytest
import torch

from twig.engine.api.mechanisms import Avoidance, InitialNoise
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.avoidance.conditioning import mask_pyramid
from twig.engine.avoidance.initial_noise import resampled_noise, sharpness_move
from twig.engine.batching.carried import attempt_seed
from twig.engine.engine import Engine


def white(seed, shape=(64, 40, 48)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def soft_mask(height=40, width=48):
    mask = torch.zeros(height, width)
    mask[8:30, 10:33] = 1
    return (
        mask_pyramid(mask, [(height // 2, width // 2)])
        .view(height // 2, width // 2)
        .repeat_interleave(2, 0)
        .repeat_interleave(2, 1)
    )


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("block", [1, 4, 7])
def test_resampled_noise_is_unit_white_noise(block, strength):
    """Mean, variance at every pixel and power at every frequency are those of unit white noise."""
    samples = torch.cat(
        [resampled_noise(white(s), soft_mask(), s + 99, block=block, strength=strength) for s in range(8)]
    )
    count = len(samples)
    assert abs(samples.mean()) < 5 / samples.numel() ** 0.5
    assert abs(samples.mean(0)).max() < 6 / count**0.5
    assert (samples.var(0) - 1).abs().max() < 6 * (2 / count) ** 0.5
    assert abs(samples.var() - 1) < 5 * (2 / samples.numel()) ** 0.5
    power = torch.fft.rfft2(samples, norm="ortho").abs().square()[:, 1:-1, 1:-1].mean(0)
    assert (power - 1).abs().max() < 7 / count**0.5


def test_resampling_changes_low_frequencies_inside_the_mask_alone():
    noise, mask = white(0), torch.zeros(40, 48)
    mask[8:32, 8:32] = 1
    changed = resampled_noise(noise, mask, 1, block=8)
    assert torch.equal(changed[:, mask == 0], noise[:, mask == 0])
    square = (slice(None), slice(8, 16), slice(16, 24))
    old, new = noise[square], changed[square]
    torch.testing.assert_close(new - new.mean((1, 2), keepdim=True), old - old.mean((1, 2), keepdim=True))
    correlation = torch.corrcoef(torch.stack((old.mean((1, 2)), new.mean((1, 2)))))[0, 1]
    assert abs(correlation) < 0.4


def test_strength_is_the_correlation_that_is_lost():
    noise, mask = white(0, (4096, 8, 8)), torch.ones(8, 8)
    changed = resampled_noise(noise, mask, 1, block=8, strength=0.6)
    correlation = torch.corrcoef(torch.stack((noise.mean((1, 2)), changed.mean((1, 2)))))[0, 1]
    assert correlation == pytest.approx(0.8, abs=0.03)


def test_resampling_depends_on_its_seed_and_mask_alone():
    noise, mask = white(0), soft_mask()
    again = resampled_noise(noise, mask, 5, block=4)
    assert torch.equal(resampled_noise(noise, mask, 5, block=4), again)
    assert not torch.equal(resampled_noise(noise, mask, 6, block=4), again)
    assert torch.equal(resampled_noise(noise, torch.zeros(40, 48), 5, block=4), noise)
    assert torch.equal(resampled_noise(noise, mask, 5, block=4, strength=0.0), noise)


@pytest.mark.parametrize("values", [{"block": 0}, {"block": 4, "strength": 1.5}])
def test_impossible_resampling_is_refused(values):
    with pytest.raises(ValueError, match="block must be at least 1"):
        resampled_noise(white(0), soft_mask(), 0, **values)


def test_a_sharpness_step_leaves_where_guidance_grows():
    """On guidance c(x) = k x the rule shrinks x, and where guidance is the same everywhere it moves nothing."""
    x, climbs = white(3, (2, 4, 8, 8)), torch.tensor([True, True])
    lengths = torch.tensor([[0.5, 0.7]]).expand(2, 2)

    def step(guidance):
        first = guidance(x)
        there = sharpness_move(x, torch.zeros_like(x), first, lengths, climbs)
        assert torch.allclose((there - x).flatten(1).norm(dim=1), torch.tensor(0.5))
        return sharpness_move(there, first, guidance(there), lengths, ~climbs)

    shrunk = step(lambda latent: 2 * latent)
    torch.testing.assert_close(shrunk, x * (1 - 0.7 * 2 * 0.5 / x.flatten(1).norm(dim=1).view(2, 1, 1, 1)))
    torch.testing.assert_close(step(lambda latent: torch.ones_like(latent)), x)


def request(noise, **changes):
    policy = Avoidance.off().model_copy(update={"initial_noise": noise})
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    stage = Stage(steps=2)
    return GenerationRequest(
        prompt="a red star", seed=3, draft=stage, final=stage, avoidance=policy, mask=mask,
        similarity=SimilarityPolicy(limits={}, retries=0), **changes,
    )  # fmt: skip


def started(engine, wanted):
    """Latent that the final starts from, and the result."""
    found, start = [], engine.stages.starting.start_final

    def spy(job):
        start(job)
        found.append(engine.arenas.loop(job.shape).arena.latents[job.slot].clone())

    engine.stages.starting.start_final = spy
    (result,) = engine.generate(wanted)
    engine.stages.starting.start_final = start
    return found[0], result


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint)


def test_resampling_keeps_the_drafts_noise_outside_the_mask(engine):
    drafts = torch.randn((1, 4, 16, 16), generator=torch.Generator("cpu").manual_seed(3))[0]
    latent, _ = started(engine, request(InitialNoise(resample=1.0, sharpness_steps=0)))
    assert torch.equal(latent[:, 8:], drafts[:, 8:])
    assert not torch.isclose(latent[:, :8], drafts[:, :8]).any()


def test_without_resampling_the_noise_is_the_attempts_own(engine):
    fresh = torch.randn((1, 4, 16, 16), generator=torch.Generator("cpu").manual_seed(attempt_seed(3, 0, 0)))[0]
    for policy in (None, InitialNoise()):
        assert torch.equal(started(engine, request(policy))[0], fresh)


def test_sharpness_steps_are_billed_and_explained(engine):
    _, plain = started(engine, request(None, explain=True))
    _, still = started(engine, request(InitialNoise(gamma=0.0), explain=True))
    _, moved = started(engine, request(InitialNoise(sharpness_steps=1), explain=True))
    assert [r.attempts[0].rows for r in (plain, still, moved)] == [4, 12, 8]
    assert plain.explanation.noise_moved == 0
    assert still.explanation.noise_moved == pytest.approx(0, abs=1e-6)
    assert moved.explanation.noise_moved > 1e-4
    assert len(moved.explanation.mass_inside) == 2
    difference = np.abs(np.asarray(still.image).astype(int) - np.asarray(plain.image).astype(int))
    assert difference.max() <= 1, "without a gamma the noise is left where it was"


def test_previews_begin_with_the_first_step(engine):
    events = []
    engine.generate(request(InitialNoise(), preview=1), events.append)
    shown = [(event.state.value, event.step) for event in events if event.picture is not None and event.steps]
    assert [step for state, step in shown if state == "finalising"] == [1, 2]
