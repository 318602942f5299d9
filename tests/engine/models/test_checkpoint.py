import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from model_folders import WEIGHTS, edit, small_unet
from twig.engine.models.checkpoint import load


def test_folder_loads_with_sizes_from_its_parts(tiny_checkpoint, no_hub, capfd):
    components = load(tiny_checkpoint)
    assert components.size == (64, 64)
    assert components.vae_scale_factor == 4
    assert components.max_tokens == 77
    assert components.name == str(tiny_checkpoint)
    assert components.scheduler.config.beta_schedule == "scaled_linear"
    assert components.segmenter.labels == ("background", "circle", "square", "star")
    assert components.segmenter.background == {0}
    assert components.calibration.limits == {"ssim": 0.9, "ssim_masked": 0.9}
    assert not components.unet.training
    assert not any(p.requires_grad for p in components.unet.parameters())
    assert capfd.readouterr() == ("", "")


def test_loaded_weights_are_those_on_disk(tiny_checkpoint):
    components = load(tiny_checkpoint)
    for part, file in WEIGHTS.items():
        module = components.segmenter.model if part == "segmenter" else getattr(components, part)
        on_disk, loaded = load_file(tiny_checkpoint / part / file).values(), module.state_dict().values()
        assert sum(t.double().sum() for t in on_disk) == pytest.approx(sum(t.double().sum() for t in loaded)), part


def test_dtype_is_the_one_asked_for(tiny_checkpoint):
    components = load(tiny_checkpoint, dtype=torch.bfloat16)
    parts = (components.unet, components.controlnet, components.vae, components.text_encoder)
    assert {next(part.parameters()).dtype for part in parts} == {torch.bfloat16}


def test_hashes_follow_weights_and_configuration(folder):
    before = load(folder).hashes
    assert load(folder).hashes == before
    weights = load_file(folder / "unet" / WEIGHTS["unet"])
    weights["conv_in.bias"] += 1
    save_file(weights, folder / "unet" / WEIGHTS["unet"])
    edit(folder / "scheduler/scheduler_config.json", beta_end=0.02)
    after = load(folder).hashes
    assert {name for name in before if before[name] != after[name]} == {"unet", "scheduler"}


def test_controlnet_and_segmenter_are_optional_and_replaceable(folder, tmp_path):
    shutil.move(folder / "controlnet", tmp_path / "mine")
    shutil.move(folder / "segmenter", tmp_path / "seg")
    alone = load(folder)
    assert alone.controlnet is None
    assert alone.segmenter is None
    joined = load(folder, controlnet=tmp_path / "mine", segmenter=tmp_path / "seg")
    assert joined.controlnet is not None
    assert "segmenter" in joined.hashes


# --- a user's Stable Diffusion 1.5 folder ---


def save_stable_diffusion_1_5(folder, tokenizer, variant=None):
    """The parts and configurations of the published folder, shrunk in width, with random weights."""
    torch.manual_seed(1)
    from_tiny = CLIPTokenizer.from_pretrained(tokenizer / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(tokenizer / "text_encoder")
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    unet = small_unet(
        sample_size=64, block_out_channels=(8, 16, 16, 16), layers_per_block=2, down_block_types=down, up_block_types=up
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2, sample_size=512,
        scaling_factor=0.18215,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, from_tiny, unet, scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, variant=variant)
    return pipeline


def as_published(folder):
    """Old tokenizer files and key names, and what else lies in such a folder."""
    tokenizer = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(tokenizer["vocab"]))
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in tokenizer["merges"])])
    (folder / "tokenizer/merges.txt").write_text(merges + "\n")
    text = next((folder / "text_encoder").glob("*.safetensors"))
    weights = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(text).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, text, metadata={"format": "pt"})
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"never read")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"never read")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_stable_diffusion_1_5_folder_loads(tiny_checkpoint, tmp_path, variant, no_hub):
    pipeline = save_stable_diffusion_1_5(tmp_path, tiny_checkpoint, variant)
    as_published(tmp_path)
    components = load(tmp_path)
    assert components.size == (512, 512)
    assert components.vae_scale_factor == 8
    assert components.controlnet is None
    assert not components.scheduler.config.clip_sample
    assert torch.equal(components.scheduler.betas, pipeline.scheduler.betas)
    prompt = "a red star"
    assert components.tokenizer(prompt).input_ids == pipeline.tokenizer(prompt).input_ids
    ids = components.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(components.text_encoder(ids)[0], pipeline.text_encoder(ids)[0])


def test_full_precision_goes_before_a_variant(folder):
    part = folder / "unet"
    half = {name: tensor.half() + 1 for name, tensor in load_file(part / WEIGHTS["unet"]).items()}
    save_file(half, part / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    before = load_file(part / WEIGHTS["unet"])["conv_in.bias"]
    assert torch.equal(load(folder).unet.conv_in.bias, before)


def test_half_precision_on_disk_loads_in_the_dtype_asked_for(folder):
    part = folder / "unet"
    half = {name: tensor.half() for name, tensor in load_file(part / WEIGHTS["unet"]).items()}
    save_file(half, part / WEIGHTS["unet"], metadata={"format": "pt"})
    bias = load(folder).unet.conv_in.bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, half["conv_in.bias"].float())


def test_sharded_weights_load(folder):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="300KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert torch.equal(load(folder).unet.conv_out.weight, unet.conv_out.weight)
