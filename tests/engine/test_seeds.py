"""The embedded model's pictures against diffusers' pipeline of the same seed."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import EMBEDDED

PROMPT, SEED, STEPS = "a red star on a green field", 5, 4
ROUNDING = 2  # of 255 levels


@pytest.fixture(scope="module")
def pipeline():
    loaded = StableDiffusionPipeline.from_pretrained(
        EMBEDDED, safety_checker=None, feature_extractor=None, requires_safety_checker=False, torch_dtype=torch.float32
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


def drawn(pipeline, seed):
    generator = torch.Generator().manual_seed(seed)
    return pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=5.0, generator=generator).images[0]


@pytest.fixture(scope="module")
def results():
    stage = Stage(steps=STEPS)
    plain = GenerationRequest(
        prompt=PROMPT,
        seed=SEED,
        draft=stage,
        final=stage,
        avoidance=Avoidance.off(),
        similarity=SimilarityPolicy(rule="accept everything"),
    )
    return Engine.from_pretrained().generate([plain, plain.model_copy(update={"gate": Gate(limits={"guidance": 1e9})})])


def difference(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max()


def test_the_draft_is_the_pipelines_picture_of_the_same_seed(pipeline, results):
    assert difference(results[0].draft, drawn(pipeline, SEED)) <= ROUNDING


def test_a_final_without_avoidance_is_the_pipelines_picture_of_the_attempts_seed(pipeline, results):
    seed = results[0].attempts[-1].seed
    assert seed != SEED
    assert difference(results[0].image, drawn(pipeline, seed)) <= ROUNDING


def test_a_gate_that_never_opens_delivers_the_pipelines_picture(pipeline, results):
    assert difference(results[1].image, drawn(pipeline, SEED)) <= ROUNDING
    assert results[1].rows == results[1].draft_rows
