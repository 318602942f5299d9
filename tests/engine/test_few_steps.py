"""Models that were distilled to be drawn in few steps, narrow ones, against diffusers' pipelines."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)

from tiny_models import build_unet
from twig.benchmarks.reference.solvers import step_noise
from twig.engine.api.errors import InvalidRequestError, TwigWarning
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.kernels.philox import NoiseStream

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPT = "a red star"
ROUNDING = 2  # of 255 levels


def plain(stage, **changes):
    return GenerationRequest(
        prompt=PROMPT, seed=3, draft=stage, final=stage, avoidance=Avoidance.off(),
        similarity=SimilarityPolicy(rule="accept everything"), **changes,
    )  # fmt: skip


def folder_of(tiny_checkpoint, place, scheduler, unet=None):
    """A copy of the tiny model with another scheduler, and another UNet where there is one; no ControlNet."""
    folder = shutil.copytree(tiny_checkpoint, place / "model", ignore=shutil.ignore_patterns("controlnet"))
    index = {
        "_class_name": "StableDiffusionPipeline" if unet is None else "LatentConsistencyModelPipeline",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
        **{name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    if unet is not None:
        shutil.rmtree(folder / "unet")
        unet.save_pretrained(folder / "unet")
    return folder


def loaded(kind, folder):
    pipeline = kind.from_pretrained(folder, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def differ(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


@pytest.fixture(scope="module")
def consistency(tiny_checkpoint, tmp_path_factory):
    """A latent consistency model: its network is told the guidance."""
    torch.manual_seed(5)
    usual = build_unet()
    unet = UNet2DConditionModel.from_config(usual.config, time_cond_proj_dim=32)
    unet.load_state_dict(usual.state_dict(), strict=False)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.3)
    return folder_of(tiny_checkpoint, tmp_path_factory.mktemp("lcm"), LCMScheduler(**SCHEDULE), unet)


@pytest.fixture(scope="module")
def told(consistency):
    return Engine.from_pretrained(consistency, limits=Limits(slots=4, rows=8))


def test_a_latent_consistency_model_is_drawn_in_one_row_a_step(consistency, told, monkeypatch):
    """Its pictures are the pipeline's of the same noise, at guidance of each row's own, all in one batch."""
    scales = (1.0, 4.0, 8.5)
    results = told.generate([plain(Stage(steps=4, guidance_scale=scale)) for scale in scales])
    pipeline = loaded(LatentConsistencyModelPipeline, consistency)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    for scale, result in zip(scales, results, strict=True):
        assert result.request.final.solver == "lcm"
        assert result.attempts[0].rows == 4
        expected = with_counter_noise(pipeline, monkeypatch, 3, num_inference_steps=4, guidance_scale=scale)
        assert differ(result.draft, expected) <= ROUNDING
    assert differ(results[0].draft, results[2].draft) > 10


def test_what_a_row_is_told_does_not_depend_on_its_company(told):
    wanted = [plain(Stage(steps=3, guidance_scale=scale)) for scale in (6.0, 2.0, 11.0)]
    together = told.generate(wanted)
    (alone,) = told.generate(wanted[1])
    assert differ(together[1].image, alone.image) <= 1


def test_guidance_that_a_network_is_told_costs_no_rows(told):
    assert told.estimate(plain(Stage(steps=4, guidance_scale=8.0))) == 8
    assert told.estimate(plain(Stage(steps=4, guidance_scale=1.0))) == 8


@pytest.mark.parametrize(
    ("scheduler", "stage", "solver"),
    [
        (EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing"), {"steps": 2}, "euler"),
        (TCDScheduler(**SCHEDULE), {"steps": 4}, "tcd"),
        (LCMScheduler(**SCHEDULE), {"steps": 4}, "lcm"),
    ],
    ids=["turbo and lightning", "hyper", "lcm adapter"],
)
def test_few_step_folders_are_drawn_by_their_own_schedule(
    tiny_checkpoint, tmp_path, monkeypatch, scheduler, stage, solver
):
    folder = folder_of(tiny_checkpoint, tmp_path, scheduler)
    engine = Engine.from_pretrained(folder, limits=Limits(slots=2, rows=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", TwigWarning)
        (result,) = engine.generate(plain(Stage(**stage, guidance_scale=1)))
    assert result.request.final.solver == solver
    assert result.attempts[0].rows == stage["steps"]
    pipeline = loaded(StableDiffusionPipeline, folder)
    expected = with_counter_noise(
        pipeline, monkeypatch, 3, num_inference_steps=stage["steps"], guidance_scale=0.0, eta=0.3
    )  # guidance 0 is none, to diffusers; eta is the scheduler's own, which pipelines set to 0
    assert differ(result.draft, expected) <= ROUNDING


def test_usual_settings_with_a_few_step_model_are_told_of(tiny_checkpoint, tmp_path):
    scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    engine = Engine.from_pretrained(folder_of(tiny_checkpoint, tmp_path, scheduler), limits=Limits(slots=2, rows=4))
    with pytest.warns(TwigWarning, match="drawn in 1 to 8 steps at guidance 1, and draft asks for 2 at 5"):
        engine.admit(plain(Stage(steps=2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", TwigWarning)
        engine.admit(plain(Stage(steps=2)))  # said once


def test_a_consistency_model_has_no_more_steps_than_it_was_distilled_at(told):
    with pytest.raises(InvalidRequestError, match="draft: 51 steps of lcm: the model was distilled at 50 timesteps"):
        told.admit(plain(Stage(steps=51)))


def with_counter_noise(pipeline, monkeypatch, seed, **settings):
    """A pipeline's picture whose scheduler draws the noise that a run of `seed` does."""
    drawn = iter(range(1000))

    def noise(shape, **_):
        return step_noise(seed, next(drawn), NoiseStream.SOLVER, torch.empty(shape))

    for module in ("lcm", "tcd"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{module}.randn_tensor", noise)
    return pipeline(PROMPT, generator=torch.Generator().manual_seed(seed), **settings).images[0]
