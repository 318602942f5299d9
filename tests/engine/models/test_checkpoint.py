import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from twig.engine.api.errors import CheckpointError
from twig.engine.models import layout
from twig.engine.models.checkpoint import load

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "controlnet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "segmenter": "model.safetensors",
}


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.fixture
def no_hub(monkeypatch):
    """Fail the test if anything asks the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(layout, "snapshot_download", refuse)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def small_unet(**changes):
    options = {
        "sample_size": 16, "block_out_channels": (16, 32, 32), "layers_per_block": 1, "cross_attention_dim": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
        "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**options | changes)


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


# --- what is refused ---


def test_missing_path_is_named_and_never_looked_up(no_hub):
    for path in (Path("no/where"), "./no/where", "/no/such/model", "nowhere", "a/b/c"):
        with pytest.raises(CheckpointError, match=r"there is no folder .*owner/name"):
            load(path)


def test_unreachable_hub_id_says_so(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(layout, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"someone/model.*no network"):
        load("someone/model")


def test_hub_id_downloads_configurations_and_safetensors_only(tiny_checkpoint, monkeypatch):
    asked = {}

    def download(name, allow_patterns, ignore_patterns):
        asked[name] = allow_patterns
        return str(tiny_checkpoint)

    monkeypatch.setattr(layout, "snapshot_download", download)
    assert load("someone/model").name == "someone/model"
    assert {pattern.rsplit(".")[-1] for pattern in asked["someone/model"]} == {"json", "txt", "safetensors"}
    assert "*.safetensors" not in asked["someone/model"]


def test_unknown_layout_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no model_index\.json"):
        load(tmp_path)
    edit(folder / "model_index.json", _class_name="StableDiffusion3Pipeline")
    with pytest.raises(CheckpointError, match=r"StableDiffusion3Pipeline.*StableDiffusionPipeline"):
        load(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load(folder)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.txt"])
def test_single_file_is_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="folder"):
        load(tmp_path / name)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(CheckpointError, match=f"lacks {part}"):
        load(folder)


@pytest.mark.parametrize(("part", "file"), WEIGHTS.items())
def test_missing_weights_are_named(folder, part, file):
    (folder / part / file).unlink()
    with pytest.raises(CheckpointError, match=f"{part} has no safetensors"):
        load(folder)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(("part", "file"), WEIGHTS.items())
def test_pickled_weights_are_refused_unopened(folder, tmp_path, part, file):
    (folder / part / file).unlink()
    name = "pytorch_model.bin" if file.startswith("model") else "diffusion_pytorch_model.bin"
    (folder / part / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match=f"pickled weights.*{name}"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("part", "file"), WEIGHTS.items())
def test_truncated_weights_are_refused(folder, part, file):
    path = folder / part / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{file} is corrupt"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08" + bytes(7) + b"not json"])
def test_file_that_only_claims_to_be_safetensors_is_refused(folder, content):
    (folder / "unet" / WEIGHTS["unet"]).write_bytes(content)
    with pytest.raises(CheckpointError, match="is corrupt"):
        load(folder)


@pytest.mark.parametrize(("part", "file"), WEIGHTS.items())
def test_missing_tensor_is_never_filled_at_random(folder, part, file):
    weights = load_file(folder / part / file)
    weights.popitem()
    save_file(weights, folder / part / file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        load(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_of_other_shapes_are_refused(folder, part):
    name, value = {"unet": ("block_out_channels", [16, 32, 64]), "text_encoder": ("intermediate_size", 48)}[part]
    edit(folder / part / "config.json", **{name: value})
    with pytest.raises(CheckpointError, match=f"{part} cannot be loaded|lacks"):
        load(folder)


def test_text_encoder_of_another_width_is_refused(folder):
    shutil.rmtree(folder / "unet")
    small_unet(cross_attention_dim=48).save_pretrained(folder / "unet")
    with pytest.raises(CheckpointError, match=r"cross_attention_dim is 48.*32"):
        load(folder)


def test_inpainting_unet_is_refused(folder):
    shutil.rmtree(folder / "unet")
    small_unet(in_channels=9).save_pretrained(folder / "unet")
    with pytest.raises(CheckpointError, match=r"in_channels is 9.*4"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 64}, "cross_attention_dim is 64.*32"),
        ({"block_out_channels": (16, 32, 64)}, r"block_out_channels is \(16, 32, 64\).*\(16, 32, 32\)"),
        ({"layers_per_block": 2}, r"residuals is \[16, 16, 16, 16, .*\[16, 16, 16, 32,"),
        ({"in_channels": 9}, "in_channels is 9.*4"),
    ],
)
def test_controlnet_of_another_model_is_refused_with_both_values(tiny_checkpoint, tmp_path, changes, message):
    other = ControlNetModel.from_unet(small_unet(**changes), conditioning_embedding_out_channels=(8, 8, 16))
    other.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"ControlNet's {message}"):
        load(tiny_checkpoint, controlnet=tmp_path)


def test_controlnet_for_another_autoencoder_is_refused(tiny_checkpoint, tmp_path):
    other = ControlNetModel.from_unet(small_unet(), conditioning_embedding_out_channels=(8, 8, 8, 16))
    other.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"hint pixels per latent is 8.*4"):
        load(tiny_checkpoint, controlnet=tmp_path)


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("vae/config.json", {"_class_name": "AutoencoderKLWan"}, "AutoencoderKLWan.*AutoencoderKL, AutoencoderTiny"),
        ("segmenter/config.json", {"architectures": ["DetrForSegmentation"]}, "DetrForSegmentation.*Segformer"),
        ("segmenter/config.json", {"palette": [[0, 0, 0]]}, "4 labels.*palette"),
        ("segmenter/preprocessor_config.json", {"size": {}}, "preprocessor_config.json"),
        ("segmenter/preprocessor_config.json", {"resample": 1}, "preprocessor_config.json"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "unet lacks|class_embed_type"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "wavy"}, "noise schedule"),
    ],
)
def test_part_of_a_kind_that_is_not_served_is_named(folder, path, changes, message):
    edit(folder / path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_calibration_is_optional_but_never_misread(folder):
    (folder / "calibration.json").write_text('{"limits": {}}')
    with pytest.raises(CheckpointError, match=r"calibration\.json is no calibration"):
        load(folder)
    (folder / "calibration.json").unlink()
    assert load(folder).calibration is None


def test_flow_matching_schedule_is_refused(folder):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"FlowMatchEulerDiscreteScheduler.*beta schedule"):
        load(folder)
