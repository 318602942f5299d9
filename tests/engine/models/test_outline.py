"""What is found of a checkpoint before its weights are read, and what takes the place of its parts."""

import json
import shutil
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file

from model_folders import WEIGHTS, edit
from twig.engine.api.errors import CheckpointError, InvalidRequestError, TwigWarning
from twig.engine.api.request import GenerationRequest
from twig.engine.engine import Engine
from twig.engine.models import layout
from twig.engine.models.checkpoint import load
from twig.engine.replay import replay


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


@pytest.fixture
def unread(monkeypatch):
    """No weights may be read."""

    def load(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(layout, "load_module", load)


def other_weights(part, name):
    """Write the weights of a part again, halved, under another name."""
    tensors = load_file(part / WEIGHTS[part.name])
    save_file({key: value / 2 for key, value in tensors.items()}, part / name)


def test_parts_that_do_not_fit_are_found_before_weights_are_read(folder, unread):
    edit(folder / "unet/config.json", cross_attention_dim=48)
    with pytest.raises(CheckpointError, match="cross_attention_dim is 48, but must be the width of the text, 32"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 65}, "width 65 is not a multiple of 4"),
        ({"height": 4096, "width": 4096}, "allow more with max_pixels"),
        ({"prompt": "star " * 230}, "prompt has 238 tokens in 4 chunks"),
        ({"draft": {"steps": 200}}, "draft steps 200 exceed"),
    ],
)
def test_requests_are_checked_before_weights_are_read(tiny_checkpoint, unread, changes, message):
    asked = GenerationRequest(**{"prompt": "a star"} | changes)
    with pytest.raises(InvalidRequestError, match=message):
        Engine.from_pretrained(tiny_checkpoint, requests=asked)


def test_a_missing_controlnet_is_found_before_weights_are_read(folder, unread):
    shutil.rmtree(folder / "controlnet")
    with pytest.raises(InvalidRequestError, match="needs a ControlNet"):
        Engine.from_pretrained(folder, requests="a star")


def test_a_variant_is_taken_where_a_part_has_it_and_hashed(folder):
    other_weights(folder / "unet", "diffusion_pytorch_model.fp16.safetensors")
    usual, variant = load(folder), load(folder, variant="fp16")
    assert torch.equal(variant.unet.conv_in.weight, usual.unet.conv_in.weight / 2)
    assert {name for name in usual.hashes if usual.hashes[name] != variant.hashes[name]} == {"unet"}
    assert variant.sources["variant"] == "fp16"
    with pytest.raises(CheckpointError, match="no part has weights of the variant='bf16'"):
        load(folder, variant="bf16")


def test_an_autoencoder_from_elsewhere_takes_the_models_place(folder, tiny_checkpoint):
    other_weights(folder / "vae", WEIGHTS["vae"])
    there, usual = load(tiny_checkpoint, vae=folder / "vae"), load(tiny_checkpoint)
    given = load(tiny_checkpoint, vae=there.vae)
    assert there.sources["vae"] == str(folder / "vae")
    assert given.sources["vae"] == "AutoencoderTiny in memory"
    for one in (there, given):
        assert torch.equal(one.vae.decoder.layers[0].weight, usual.vae.decoder.layers[0].weight / 2)
        assert {name for name in usual.hashes if usual.hashes[name] != one.hashes[name]} == {"vae"}


def test_a_part_in_memory_is_hashed_by_what_it_holds_and_let_be(tiny_checkpoint):
    vae = load(tiny_checkpoint).vae
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    first = load(tiny_checkpoint, vae=vae, dtype=torch.bfloat16)
    assert first.vae.dtype is torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    with torch.no_grad():
        vae.decoder.layers[0].bias[0] += 1
    assert load(tiny_checkpoint, vae=vae).hashes["vae"] != first.hashes["vae"]


def test_a_scheduler_is_what_its_configuration_says(tiny_checkpoint):
    usual = load(tiny_checkpoint)
    schedule = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "steps_offset": 1}
    given = load(tiny_checkpoint, scheduler=PNDMScheduler(**schedule, skip_prk_steps=True))
    assert isinstance(given.scheduler, DDIMScheduler)
    assert given.scheduler.config.beta_end == 0.02
    assert given.sources["scheduler"] == "PNDMScheduler in memory"
    assert given.hashes["scheduler"] != usual.hashes["scheduler"]
    levelled = load(tiny_checkpoint, scheduler=EulerDiscreteScheduler(**schedule, use_karras_sigmas=True)).sampler
    assert (levelled.solver, levelled.sigmas) == ("euler", "karras")
    with pytest.raises(CheckpointError, match="the scheduler in memory says final_sigmas_type is 'sigma_min'"):
        load(tiny_checkpoint, scheduler=EulerDiscreteScheduler(final_sigmas_type="sigma_min"))
    with pytest.raises(CheckpointError, match="must be a scheduler of diffusers, got 'ddim'"):
        load(tiny_checkpoint, scheduler="ddim")


def test_a_subfolder_is_found_and_never_leads_out(tiny_checkpoint):
    assert load(tiny_checkpoint.parent, subfolder=tiny_checkpoint.name).hashes == load(tiny_checkpoint).hashes
    for subfolder, message in (("none", "there is no folder none"), ("../x", "leads out"), ("/tmp", "leads out")):
        with pytest.raises(CheckpointError, match=message):
            load(tiny_checkpoint, subfolder=subfolder)


def test_a_revision_is_of_a_hub_id_and_goes_there(tiny_checkpoint, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options)
        return str(tiny_checkpoint.parent)

    monkeypatch.setattr(layout, "snapshot_download", download)
    found = load("someone/model", revision="v1", subfolder=tiny_checkpoint.name)
    assert asked["revision"] == "v1"
    assert f"{tiny_checkpoint.name}/model_index.json" in asked["allow_patterns"]
    assert (found.sources["source"], found.sources["revision"]) == ("someone/model", "v1")
    with pytest.raises(CheckpointError, match="is a folder, and revision='v1' is of a hub id"):
        load(tiny_checkpoint, revision="v1")


@pytest.mark.parametrize(
    ("index", "warned"),
    [
        ({"requires_safety_checker": True}, True),
        ({"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}, True),
        ({"requires_safety_checker": False, "safety_checker": [None, None]}, False),
    ],
)
def test_a_safety_checker_is_said_not_to_run(folder, index, warned):
    edit(folder / "model_index.json", **index)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TwigWarning)
        load(folder)
    assert ["pictures are not filtered" in str(each.message) for each in caught] == [True] * warned


def test_a_replay_knows_a_part_in_memory_by_its_hash(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint, vae=load(tiny_checkpoint).vae)
    (result,) = engine.generate(GenerationRequest(prompt="a star", draft={"steps": 1}, final={"steps": 1}))
    manifest = type(engine.manifest(result)).from_json(engine.manifest(result).to_json())
    assert json.loads(manifest.to_json())["model"]["vae"] == "AutoencoderTiny in memory"
    assert replay(manifest, engine).identical
