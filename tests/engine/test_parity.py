"""The batched engine against the plain reference, one policy switch at a time, all of them in one live batch."""

import numpy as np
import pytest
import torch

from twig.benchmarks.reference import pipeline as reference
from twig.engine.api.choices import Sigmas, Solver
from twig.engine.api.mechanisms import (
    Avoidance,
    DelayedGuidance,
    InitialNoise,
    MaskedAttention,
    MaskedNoise,
    MovedControl,
    Repulsion,
    RestatedPrompt,
)
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.carried import attempt_seed
from twig.engine.engine import Engine
from twig.engine.judging.registry import Registry, Work
from twig.engine.models.checkpoint import load
from twig.engine.sampling.sampler import CONSISTENCY, TAKING
from watched import final_latents

OFF = Avoidance.off()
PROTECTED = torch.randn((3, 4, 16, 16), generator=torch.Generator().manual_seed(7))
CASES = {
    "all off": OFF,
    "default": Avoidance(),
    "delayed guidance": OFF.model_copy(update={"delayed_guidance": DelayedGuidance(stop=0.4)}),
    "conditional first": OFF.model_copy(update={"delayed_guidance": DelayedGuidance(branch="conditional")}),
    "detected guidance": OFF.model_copy(update={"delayed_guidance": DelayedGuidance(detect=True)}),
    "masked noise": OFF.model_copy(update={"masked_noise": MaskedNoise(strength=0.7, stop=0.5)}),
    "attention bias": OFF.model_copy(update={"masked_attention": MaskedAttention(bias=-4)}),
    "attention outside": OFF.model_copy(update={"masked_attention": MaskedAttention(bias=-1e4, outside_bias=-1)}),
    "attention scale": OFF.model_copy(
        update={"masked_attention": MaskedAttention(bias=0, scale=1.3, tokens="padding", layers=("down", "mid", "up"))}
    ),
    "attention gain": OFF.model_copy(
        update={"masked_attention": MaskedAttention(bias=0, gain=0.3, renormalise=0.5, damping=0.2)}
    ),
    "attention spikes": OFF.model_copy(
        update={"masked_attention": MaskedAttention(bias=-4, tokens="spikes", spike_threshold=0.8)}
    ),
    "control": OFF.model_copy(update={"moved_control": MovedControl(warp="none", scale=1.5, rows="both")}),
    "moved control": OFF.model_copy(update={"moved_control": MovedControl(scale=0.7, rows="conditional")}),
    "negative control": OFF.model_copy(update={"moved_control": MovedControl(negative=0.5, stop=0.8, rows="both")}),
    "negative beside no control": Avoidance(
        moved_control=MovedControl(negative=0.7, negative_against="none", rows="conditional"),
        delayed_guidance=DelayedGuidance(stop=0.2),
    ),
    "repulsion": OFF.model_copy(update={"repulsion": Repulsion(radius=1.5)}),
    "initial noise": OFF.model_copy(update={"initial_noise": InitialNoise(resample=0.8)}),
    "restated prompt": OFF.model_copy(update={"restated_prompt": RestatedPrompt(start=0.3, stop=0.7)}),
    "everything": Avoidance(
        restated_prompt=RestatedPrompt(),
        masked_noise=MaskedNoise(),
        masked_attention=MaskedAttention(scale=1.2),
        initial_noise=InitialNoise(),
        repulsion=Repulsion(radius=1.8),
    ),
}


PROMPTS = ("a red star", "a (red:1.3) star", "a red star BREAK the [moon]", "a red star on the moon, " * 25)
LISTED = "a red star and a square on a field untitled"


def steered(seed, solver):
    """Settings of a final that vary from case to case."""
    levels = {"sigmas": "karras"} if solver in TAKING[Sigmas.KARRAS] and seed % 2 else {}
    spaced = {"spacing": "trailing"} if solver not in CONSISTENCY and seed % 3 == 1 else {}
    return levels | spaced | [{}, {"guidance_rescale": 0.7}, {"guidance_start": 0.2, "guidance_stop": 0.8}][seed % 3]


def fitting_solver(policy, seed):
    """One after another; where noise is renewed, one that does not go back on its steps."""
    solver = list(Solver)[seed % len(Solver)]
    return Solver.DPMPP_2M_SDE if policy.masked_noise and solver in (Solver.UNIPC, Solver.HEUN) else solver


def request(policy, seed, solver):
    return GenerationRequest(
        prompt=LISTED if policy.restated_prompt is not None else PROMPTS[seed % len(PROMPTS)],
        negative_prompt="blue",
        seed=seed,
        draft=Stage(steps=2 + seed % 2, solver=solver),
        final=Stage(steps=4 + seed % 3, guidance_scale=4.0, solver=solver, **steered(seed, solver)),
        avoidance=policy,
        similarity=SimilarityPolicy(limits={}, retries=0),
    )


@pytest.fixture(scope="module")
def batch():
    return [request(policy, seed, fitting_solver(policy, seed)) for seed, policy in enumerate(CASES.values())]


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_xl_checkpoint"])
def checkpoint(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def latents(checkpoint, batch):
    works = tuple(Work(str(i), "work.png", "", "") for i in range(len(PROTECTED)))
    autoencoder = load(checkpoint).hashes["vae"]
    registry = Registry(autoencoder, works, torch.eye(len(PROTECTED), 320), PROTECTED)
    engine = Engine.from_pretrained(checkpoint, registry=registry)
    return list(zip(*final_latents(engine, batch), strict=True))


@pytest.fixture(scope="module")
def components(checkpoint):
    return load(checkpoint)


@pytest.mark.parametrize("index", range(len(CASES)), ids=CASES.keys())
def test_engine_equals_reference(components, batch, latents, index):
    wanted, (latent, result) = batch[index], latents[index]
    drafted, final = reference.generate(components, wanted, attempt_seed(wanted.seed, 0, 0), PROTECTED)
    policy = result.attempts[0].avoidance
    assert np.array_equal(drafted.mask, result.mask)
    if final.control_labels is not None:
        assert np.array_equal(final.control_labels, result.control_map)
    assert (latent - final.latent[0]).abs().max() <= 1e-4
    noise, control = policy.initial_noise, policy.moved_control
    extra = 2 if control is not None and control.negative_against == "none" else 1
    assert result.attempts[0].rows == (4 * noise.sharpness_steps if noise is not None else 0) + sum(
        len(reference.branches_at(i, wanted.final, policy)) + extra * reference.negative_at(i, wanted.final, policy)
        for i in range(wanted.final.evaluations)
    )
