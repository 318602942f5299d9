"""Pipelines of diffusers, taken as they are in memory."""

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from small_requests import fresh, request, same

from twig.engine.api.errors import CheckpointError
from twig.engine.api.mechanisms import Avoidance
from twig.engine.engine import Engine
from twig.engine.models import memory
from twig.engine.models.checkpoint import load

PLAIN = Avoidance.off()


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint)


def pipeline(components, kind=StableDiffusionPipeline, **changes):
    names = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    given = {name: getattr(components, name) for name in names} | changes
    made = kind(**given, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe):
    generator = torch.Generator().manual_seed(3)
    return np.asarray(pipe("a red star", num_inference_steps=2, width=64, height=64, generator=generator).images[0])


def test_an_engine_of_a_pipeline_draws_as_one_of_its_folder_and_leaves_the_pipeline_as_it_is(components, engine):
    pipe = pipeline(components)
    before = drawn(pipe)
    made = Engine(pipe)
    asked = request(avoidance=PLAIN, similarity={"rule": None})
    (mine,), (theirs,) = made.generate(asked), engine.generate(asked)
    assert same(mine, theirs)
    assert (drawn(pipe) == before).all()
    assert made.components.unet.conv_in.weight.data_ptr() == pipe.unet.conv_in.weight.data_ptr(), "nothing is copied"
    assert made.manifest(mine).model.source == "StableDiffusionPipeline in memory"
    assert made.manifest(mine).model.hashes["unet"] == memory.digest(pipe.unet)


def test_a_pipelines_controlnet_and_a_segmenter_of_a_folder_make_the_whole_engine(components, engine, tiny_checkpoint):
    pipe = pipeline(components, StableDiffusionControlNetPipeline, controlnet=components.controlnet)
    made = Engine.from_pipeline(pipe, segmenter=tiny_checkpoint / "segmenter")
    (mine,), (theirs,) = made.generate(request()), fresh(engine).generate(request())
    assert same(mine, theirs)
    assert made.manifest(mine).model.segmenter == str(tiny_checkpoint / "segmenter")


def test_an_xl_pipeline_is_taken(tiny_xl_checkpoint):
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    parts = load(tiny_xl_checkpoint)
    pipe = StableDiffusionXLPipeline(**{name: getattr(parts, name) for name in names}, add_watermarker=False)
    found = Engine(pipe).components
    assert (found.upcast_vae, found.zero_empty) == (True, True)


def test_another_option_is_refused_with_what_may_be_meant(components):
    with pytest.raises(TypeError, match="did you mean 'segmenter'"):
        Engine.from_pipeline(pipeline(components), segmentor="x")


def test_pipelines_and_parts_that_are_not_served_are_named(components):
    with pytest.raises(CheckpointError, match="a StableDiffusionInpaintPipeline is not served"):
        Engine(pipeline(components, StableDiffusionInpaintPipeline))
    other = pipeline(components, StableDiffusionImg2ImgPipeline)
    other.text_encoder = components.vae
    with pytest.raises(CheckpointError, match="the text_encoder in memory is of AutoencoderTiny"):
        Engine(other)


class OtherProcessor:
    """Attention of somebody's own."""


@pytest.mark.parametrize("switched_on", ["freeu", "attention", "adapter", "offloaded"])
def test_what_no_configuration_says_is_refused(tiny_checkpoint, switched_on):
    pipe = pipeline(load(tiny_checkpoint))
    match switched_on:
        case "freeu":
            pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
        case "attention":
            next(m for m in pipe.unet.modules() if hasattr(m, "set_processor")).processor = OtherProcessor()
        case "adapter":
            pipe.unet.conv_in.adapter = torch.nn.Linear(2, 2)
        case "offloaded":
            pipe.unet.to("meta")
    message = {
        "freeu": "runs FreeU",
        "attention": "not served, OtherProcessor",
        "adapter": "other tensors than its configuration says; fuse adapters",
        "offloaded": "was offloaded",
    }
    with pytest.raises(CheckpointError, match=message[switched_on]):
        Engine(pipe)
