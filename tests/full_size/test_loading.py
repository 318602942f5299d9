"""Models at their published sizes: `make test-full-size`, which says what each takes of processor time and memory.

Needs 14 GB on the disk, and 16 GB of memory for SDXL: the weights lie there in fp32, and are mapped or cast from that.
"""

import gc
import json
import platform
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import full_models
import narrow_models
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from small_requests import request
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import Control
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine
from twig.engine.models import layout, parts
from twig.engine.models.pictures import to_pixels

pytestmark = [pytest.mark.full_size, pytest.mark.timeout(3600)]
SLACK = 2.0  # GiB beside the weights
STORED = torch.float32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["sd15 folder", "sd15 file", "sdxl folder", "sdxl file"])
def made(root, request):
    """A family, the model of it that is tried, and a folder that diffusers reads its configurations from."""
    family, form = request.param.split()
    if form == "folder":
        model = configs = full_models.write_folder(family, root / "model", STORED)
    else:
        pipe, configs = full_models.outlines(family), root / "configs"
        full_models.write_configs(pipe, configs)
        model = full_models.write(narrow_models.single_file(pipe), root / "model.safetensors", STORED)
    yield family, model, configs
    for path in {model, configs}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def said(capsys, request):
    """Return a function that prints a line of findings beside the machine they are from."""

    def say(**found):
        values = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        with capsys.disabled():
            print(f"\n{request.node.name} on {platform.machine()}, {torch.get_num_threads()} threads: {values}")

    return say


@contextmanager
def clock():
    took = {}
    began = time.process_time()
    yield took
    took["seconds"] = time.process_time() - began


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_model_loads_within_its_weights_and_little_more(made, said, dtype):
    command = [sys.executable, str(Path(narrow_models.__file__).with_name("loading_memory.py"))]
    done = subprocess.run([*command, str(made[1]), dtype], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    said(**found)
    assert found["peak"] < found["weights"] + SLACK


def plain(**changes):
    """Drawn in two steps at 64x64, with nothing avoided or judged."""
    stages = {"draft": Stage(steps=1, solver="ddim"), "final": Stage(steps=2, solver="ddim")}
    return request(
        "a lighthouse in a storm", width=64, height=64, avoidance=Avoidance.off(), similarity={"rule": None},
        **stages, **changes,
    )  # fmt: skip


def drawn(asked, *source, **parts):
    """A picture of a model that is gone when it is drawn, and its seed."""
    engine = Engine.from_pretrained(*source, **parts)
    (result,) = engine.generate(asked)
    picture, seed = np.asarray(result.image).astype(int), result.attempts[-1].seed
    del engine, result
    gc.collect()
    return picture, seed


def by_diffusers(pipe, asked, seed, **options):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, steps_offset=1)
    pipe.set_progress_bar_config(disable=True)
    guidance = {"num_inference_steps": 2, "guidance_scale": asked.final.guidance_scale, "width": 64, "height": 64}
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(asked.prompt, generator=generator, **guidance, **options).images[0]).astype(int)


def test_it_draws_what_diffusers_draws(made, said):
    family, model, configs = made
    asked = plain()
    with clock() as took:
        picture, seed = drawn(asked, model)
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    if model == configs:
        pipe = kind.from_pretrained(model, local_files_only=True)
    else:
        pipe = kind.from_single_file(model, config=str(configs), local_files_only=True)
    expected = by_diffusers(pipe, asked, seed)
    off = np.abs(picture - expected).max()
    said(**took, difference=off)
    assert expected.std() > 1
    assert off <= 2


def test_a_controlnet_acts_as_in_diffusers(root, said):
    model = full_models.write_folder("sd15", root / "model", STORED)
    controlnet = full_models.write_controlnet("sd15", root / "controlnet", STORED)
    lines = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    asked = plain(controls=(Control(name="lines", image=lines, scale=0.5),))
    with clock() as took:
        picture, seed = drawn(asked, model, controlnet=[controlnet, f"lines={controlnet}"])
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        model, controlnet=ControlNetModel.from_pretrained(controlnet), local_files_only=True
    )
    expected = by_diffusers(pipe, asked, seed, image=lines, controlnet_conditioning_scale=0.5)
    off = np.abs(picture - expected).max()
    said(**took, difference=off)
    assert expected.std() > 1
    assert off <= 2


def test_a_segmenter_shows_what_transformers_shows(root, said):
    folder = full_models.write_segmenter(root / "segmenter", STORED)
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8))
    scene = coarse.resize((512, 384), Image.Resampling.BICUBIC)
    with clock() as took:
        segmenter = parts.segmenter(folder, lambda cls, _: layout.load_module(cls, None, folder, torch.float32, "cpu"))
        (labels,) = segmenter(to_pixels(scene, 384, 512))
    processor = SegformerImageProcessorPil.from_pretrained(folder)
    with torch.inference_mode():
        scores = SegformerForSemanticSegmentation.from_pretrained(folder)(**processor(scene, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(scores, target_sizes=[(384, 512)])
    share = float((labels == expected).float().mean())
    said(**took, same_labels=share)
    assert len(expected.unique()) > 1
    assert share > 0.99
