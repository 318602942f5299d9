"""SDXL's folders: what is loaded of them, and which of their relatives are not served."""

import json
import shutil

import pytest
import torch
from diffusers import ControlNetModel

from model_folders import edit
from twig.engine.api.errors import CheckpointError
from twig.engine.models.checkpoint import load


@pytest.fixture(scope="module")
def components(tiny_xl_checkpoint):
    return load(tiny_xl_checkpoint)


@pytest.fixture
def folder(tiny_xl_checkpoint, tmp_path):
    return shutil.copytree(tiny_xl_checkpoint, tmp_path / "model")


def test_the_autoencoder_stays_in_fp32_where_fp16_overflows(tiny_xl_checkpoint, folder, tiny_checkpoint):
    half = load(tiny_xl_checkpoint, dtype=torch.float16)
    assert (half.unet.dtype, half.text_encoder_2.dtype, half.vae.dtype) == (torch.float16, torch.float16, torch.float32)
    assert load(tiny_xl_checkpoint, dtype=torch.bfloat16).vae.dtype is torch.bfloat16
    edit(folder / "vae/config.json", force_upcast=False)
    assert load(folder, dtype=torch.float16).vae.dtype is torch.float16
    assert load(tiny_checkpoint, dtype=torch.float16).vae.dtype is torch.float16


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("text_encoder_2", r"lacks text_encoder_2; a StableDiffusionXLControlNetPipeline needs"),
        ("tokenizer_2", "lacks tokenizer_2"),
        ("text_encoder", "lacks text_encoder;"),
    ],
)
def test_a_missing_second_part_is_named(folder, part, message):
    shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "holds a StableDiffusionXLInpaint"),
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True},
            "aesthetics score, as SDXL's refiner",
        ),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, r"cross_attention_dim is 80.* 32"),
        ("unet/config.json", {"_class_name": "UNetMotionModel"}, "holds a UNetMotionModel"),
        ("controlnet/config.json", {"_class_name": "ControlNetUnionModel"}, "holds a ControlNetUnionModel"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean"),
    ],
)
def test_relatives_that_are_not_served_are_refused(folder, path, changes, message):
    edit(folder / path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_trailing_steps_to_zero_terminal_signal_are_no_sign_of_distillation(folder):
    changes = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    edit(folder / "scheduler/scheduler_config.json", **changes)
    loaded = load(folder)
    assert {name: loaded.scheduler.config[name] for name in changes} == changes
    assert not loaded.sampler.distilled


@pytest.mark.parametrize(
    ("changes", "solver"),
    [
        ({"timestep_spacing": "trailing"}, "euler"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "euler_ancestral"),
        ({"_class_name": "LCMScheduler"}, "lcm"),
        ({"_class_name": "TCDScheduler"}, "tcd"),
    ],
)
def test_schedulers_of_distilled_models_are_told_apart(folder, changes, solver):
    edit(folder / "scheduler/scheduler_config.json", **changes)
    sampler = load(folder).sampler
    assert (sampler.distilled, sampler.solver, sampler.xl) == (True, solver, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection_class_embeddings_input_dim": 24 + 5 * 8}, r"input_dim is 64.*pooled text \(24\) and 6 numbers"),
        ({"in_channels": 9}, "in_channels is 9.*4"),
        ({"addition_embed_type": None}, "addition_embed_type is None.*text_time"),
        ({"time_cond_proj_dim": 15}, "time_cond_proj_dim is 15.*even width"),
    ],
)
def test_unets_of_the_refiner_and_others_are_refused(folder, components, changes, message):
    unet = type(components.unet)(**{**components.unet.config, **changes})
    unet.save_pretrained(folder / "unet")
    with pytest.raises(CheckpointError, match=f"UNet's.*{message}"):
        load(folder)


def test_controlnet_without_added_conditions_is_refused(components, tiny_xl_checkpoint, tmp_path):
    plain = {"addition_embed_type": None, "projection_class_embeddings_input_dim": None}
    ControlNetModel(**{**components.controlnet.config, **plain}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"ControlNet's addition_embed_type is None.*text_time"):
        load(tiny_xl_checkpoint, controlnet=tmp_path)


def test_controlnet_of_stable_diffusion_is_refused(tiny_xl_checkpoint, tiny_checkpoint):
    with pytest.raises(CheckpointError, match=r"ControlNet's cross_attention_dim is 32.*80"):
        load(tiny_xl_checkpoint, controlnet=tiny_checkpoint / "controlnet")


def test_tokenizers_that_split_differently_are_refused(folder):
    path = folder / "tokenizer_2/tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["red</w>"], vocabulary["blue</w>"] = vocabulary["blue</w>"], vocabulary["red</w>"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="tokenizer_2's vocabulary"):
        load(folder)
