"""Folders that are not served: what is missing, damaged, dangerous or of another kind is named."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from model_folders import WEIGHTS, edit, small_unet
from twig.engine.api.errors import CheckpointError
from twig.engine.models import layout
from twig.engine.models.checkpoint import load


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

    def download(name, revision, allow_patterns, ignore_patterns):
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.ckpt", "is a pickle, which can run code when it is loaded; give a folder or a file of safetensors"),
        ("model.txt", r"is a file, and no \.safetensors"),
        ("model.safetensors", "is corrupt or cut short"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_a_way_out(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=said):
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
    name, value = {"unet": ("time_embedding_dim", 48), "text_encoder": ("intermediate_size", 48)}[part]
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
    with pytest.raises(CheckpointError, match=r"in_channels is 9 \(an inpainting model, which is not served\).*4"):
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
        (
            "unet/config.json",
            {"addition_embed_type": "image"},
            "addition_embed_type is 'image'.*'text_time'",
        ),
        ("text_encoder/config.json", {"initializer_factor": 1}, "text_encoder cannot be loaded.*expected float"),
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
