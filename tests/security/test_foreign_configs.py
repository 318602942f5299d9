"""Model folders made by anybody: what would change a picture, reach code or another file is refused by name."""

import inspect
import json
import os
import pickle
import shutil
from pathlib import Path

import diffusers
import pytest
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from twig.engine.api.errors import CheckpointError
from twig.engine.models import layout
from twig.engine.models.checkpoint import load
from twig.engine.models.configs import CODE

pytestmark = pytest.mark.slow

NETWORKS = {"unet": "UNet2DConditionModel", "controlnet": "ControlNetModel", "vae": "AutoencoderTiny"}
CONFIGS = {
    "text_encoder": "config.json", "segmenter": "config.json", "unet": "config.json", "controlnet": "config.json",
    "vae": "config.json", "tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json",
}  # fmt: skip


@pytest.fixture
def folder(tiny_checkpoint, tmp_path, monkeypatch):
    """A copy of the tiny checkpoint, and no way to the hub."""

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(layout, "snapshot_download", refuse)
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder, message):
    """Load `folder`, which must fail in one printable line that says `message`."""
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


# --- keys that reach code, other files or the network ---


@pytest.mark.parametrize("key", sorted(CODE))
@pytest.mark.parametrize("part", CONFIGS)
def test_a_key_that_can_reach_code_is_refused_in_every_part(folder, part, key):
    edit(folder / part / CONFIGS[part], **{key: "someone/kernel"})
    refused(folder, f"{part} says {key} is 'someone/kernel'.*can reach code")


@pytest.mark.parametrize("part", ["text_encoder", "segmenter"])
def test_it_is_refused_within_other_values_too(folder, part):
    edit(folder / part / "config.json", backbone_config={"model_type": "swin", "attn_implementation": "someone/kernel"})
    refused(folder, "attn_implementation is 'someone/kernel'")


@pytest.mark.parametrize("key", ["custom_pipeline", "auto_map", "trust_remote_code"])
def test_it_is_refused_in_the_index(folder, key):
    edit(folder / "model_index.json", **{key: "someone/code"})
    refused(folder, f"{key} is 'someone/code'")


def test_a_segmenters_preprocessor_cannot_name_code(folder):
    edit(folder / "segmenter/preprocessor_config.json", auto_map={"AutoImageProcessor": "code.Processor"})
    refused(folder, "preprocessor_config.json says auto_map")


@pytest.mark.parametrize("backbone", [None, 7, "timm_backbone", "someone/backbone"])
def test_a_backbone_is_one_of_the_librarys(folder, backbone):
    edit(folder / "segmenter/config.json", backbone_config={"model_type": backbone})
    refused(folder, "backbone_config.model_type")


# --- keys that change the arithmetic ---

ODD = {bool: True, type(None): 7, int: 5, float: 0.5, str: "odd", tuple: ["Odd"]}
"""A value that is nobody's default, by the type of the default."""


def unserved():
    """Every key of the library's classes that is not served, with a value that is not its default."""
    from twig.engine.models.configs import SERVED

    for part, name in NETWORKS.items():
        for key, parameter in inspect.signature(getattr(diffusers, name).__init__).parameters.items():
            if key != "self" and key not in SERVED[name]:
                value = not parameter.default if isinstance(parameter.default, bool) else ODD[type(parameter.default)]
                yield part, key, value


@pytest.mark.parametrize(("part", "key", "value"), list(unserved()))
def test_every_key_that_is_not_served_is_refused_by_name(folder, part, key, value):
    edit(folder / part / "config.json", **{key: value})
    refused(folder, f"{part} says .*{key} ")


@pytest.mark.parametrize("part", NETWORKS)
def test_a_key_that_nobody_knows_is_refused(folder, part):
    edit(folder / part / "config.json", sharpen=True)
    refused(folder, f"{part} says .*sharpen is True")


@pytest.mark.parametrize("part", ["text_encoder", "segmenter"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sharpen", True), ("is_decoder", True), ("add_cross_attention", True), ("return_dict", False),
        ("torchscript", True), ("output_hidden_states", True), ("pruned_heads", {"0": [1]}),
        ("layer_norm_eps", float("nan")),
    ],
)  # fmt: skip
def test_a_transformers_key_that_is_not_served_is_refused(folder, part, key, value):
    edit(folder / part / "config.json", **{key: value})
    refused(folder, f"{part} says {key}")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("segmenter", "num_channels", 1), ("segmenter", "model_type", "clip_text_model"),
        ("text_encoder", "model_type", "bert"), ("text_encoder", "text_config", {}),
        ("unet", "down_block_types", ["DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"]),
        ("unet", "down_block_types", ["DownBlock2D", "SimpleCrossAttnDownBlock2D", "CrossAttnDownBlock2D"]),
        ("unet", "norm_eps", float("nan")), ("unet", "mid_block_scale_factor", float("inf")),
        ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"), ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", "large"), ("vae", "num_decoder_blocks", [1, 1]), ("vae", "shift_factor", 0.1),
        ("tokenizer", "padding_side", "left"), ("tokenizer", "tokenizer_class", "BertTokenizer"),
        ("tokenizer", "model_max_length", 1), ("tokenizer", "tokenizer_file", "/etc/passwd"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_served_is_refused(folder, part, key, value):
    edit(folder / part / CONFIGS[part], **{key: value})
    refused(folder, f"{part} says .*{key.replace('num_decoder_blocks', 'num_')}")


@pytest.mark.parametrize(("part", "key"), [("unet", "sample_size"), ("controlnet", "conditioning_channels")])
@pytest.mark.parametrize("value", [None, 0, -1, "large", 1])
def test_a_size_that_is_none_is_refused(folder, part, key, value):
    if (key, value) == ("sample_size", 1):
        pytest.skip("one latent is a size")
    edit(folder / part / "config.json", **{key: value})
    refused(folder, key)


SCHEDULES = {
    "use_karras_sigmas": "yes", "use_exponential_sigmas": 1, "use_beta_sigmas": [], "use_lu_lambdas": True,
    "original_inference_steps": 0, "timestep_scaling": -1.0,
    "use_flow_sigmas": True, "use_dynamic_shifting": True, "thresholding": True, "timestep_type": "continuous",
    "interpolation_type": "log_linear", "final_sigmas_type": "sigma_min", "sigma_min": 0.1, "sigma_max": 9.0,
    "flow_shift": 3.0, "prediction_type": "flow_prediction", "timestep_spacing": "odd", "num_train_timesteps": True,
    "steps_offset": -1, "beta_start": -0.1, "beta_end": 2, "trained_betas": ["a"], "rescale_betas_zero_snr": 1,
    "set_alpha_to_one": "yes", "sharpen": 1, "shift": 3.0, "lambda_min_clipped": -5.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
@pytest.mark.parametrize("key", SCHEDULES)
def test_a_schedule_that_is_not_served_is_refused_by_key(folder, name, key):
    edit(folder / "scheduler/scheduler_config.json", _class_name=name, **{key: SCHEDULES[key]})
    refused(folder, f"scheduler says {key} ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("solver_order", 3),
        ("solver_order", ["\x1b[31m" * 99]),
        ("algorithm_type", "dpmsolver"),
        ("euler_at_final", True),
        ("lower_order_final", False),
    ],
)
def test_orders_that_are_not_served_are_said_of_the_solver_that_stands_in(folder, key, value):
    path = folder / "scheduler/scheduler_config.json"
    edit(path, _class_name="DPMSolverMultistepScheduler", **{key: value})
    said = load(folder).sampler.note
    assert f"asks for {key}" in said
    assert "dpmpp_2m stands in for it" in said
    assert "\x1b" not in said
    assert len(said) < 400


def test_levels_of_two_kinds_are_refused(folder):
    edit(folder / "scheduler/scheduler_config.json", use_karras_sigmas=True, use_beta_sigmas=True)
    refused(folder, "use_karras_sigmas and use_beta_sigmas")


@pytest.mark.parametrize("name", [None, 7, "os", "ControlNetModel", "MyScheduler"])
def test_a_scheduler_of_nobody_is_refused(folder, name):
    edit(folder / "scheduler/scheduler_config.json", _class_name=name)
    refused(folder, "scheduler says _class_name")


@pytest.mark.parametrize("name", ["PNDM", "LMSDiscrete", "HeunDiscrete", "UniPCMultistep", "DEISMultistep"])
def test_schedulers_of_other_solvers_load_as_their_library_saves_them(folder, name):
    scheduler = getattr(diffusers, f"{name}Scheduler")(beta_schedule="scaled_linear")
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    load(folder)


# --- parts that would be ignored ---


def test_a_second_segmenter_is_refused(folder):
    shutil.copytree(folder / "segmenter", folder / "segmenter_1")
    refused(folder, "segmenter_1; one is served")


def test_a_second_part_is_no_matter_where_another_is_named(folder, tiny_checkpoint):
    shutil.copytree(folder / "segmenter", folder / "segmenter_1")
    load(folder, segmenter=tiny_checkpoint / "segmenter")


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": ["diffusers", "T2IAdapter"]}, {"unet_2": ["diffusers", "UNet2DConditionModel"]},
        {"controlnet": ["my_code", "MultiControlNetModel"]}, {"unet": ["my_code", "MyUNet"]}, {"sharpen": True},
        {"vae": [{}, {}]},
    ],
)  # fmt: skip
def test_an_index_that_names_other_parts_is_refused(folder, changes):
    edit(folder / "model_index.json", **changes)
    refused(folder, "not served|not run here|several")


def test_a_picture_of_one_channel_or_four_is_refused(folder, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "controlnet")
    one = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16), conditioning_channels=1)
    one.save_pretrained(folder / "controlnet")
    refused(folder, "controlnet says .*conditioning_channels is 1")
    shutil.rmtree(folder / "controlnet")
    edit(folder / "vae/config.json", out_channels=4)
    refused(folder, "vae says out_channels is 4")


# --- weights ---


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "segmenter": "model",
}


def shard(folder, part, names):
    """Divide the weights of `part` among files of these names, and write their index."""
    stem = PARTS[part]
    whole = folder / part / f"{stem}.safetensors"
    weights = load_file(whole)
    whole.unlink()
    tensors = sorted(weights)
    groups = [tensors[i :: len(names)] for i in range(len(names))]
    for name, group in zip(names, groups, strict=True):
        path = folder / part / name
        path.parent.mkdir(exist_ok=True)
        content = {tensor: weights[tensor] for tensor in group}
        if path.suffix == ".safetensors":
            save_file(content, path, metadata={"format": "pt"})
        else:
            path.write_bytes(pickle.dumps(content))
    index = {"metadata": {}, "weight_map": {t: n for n, group in zip(names, groups, strict=True) for t in group}}
    (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "stray",
    [
        "w.bin",
        "w.safetensors",
        "../w.safetensors",
        "/tmp/w.safetensors",
        "sub/{}-00002-of-00002.safetensors",
        "\x1b[2J",
    ],
)
def test_an_index_names_no_other_file_than_shards_beside_it(folder, part, stray):
    first = f"{PARTS[part]}-00001-of-00002.safetensors"
    shard(folder, part, [first, f"{PARTS[part]}-00002-of-00002.safetensors"])
    index = next((folder / part).glob("*.index.json"))
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = stray.format(PARTS[part])
    index.write_text(json.dumps(content))
    refused(folder, r"index\.json")


@pytest.mark.parametrize("part", PARTS)
def test_shards_are_all_hashed_and_all_loaded(folder, part):
    names = [f"{PARTS[part]}-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    shard(folder, part, names)
    before = load(folder).hashes[part]
    for name in names:
        weights = load_file(folder / part / name)
        key = next(name for name, tensor in weights.items() if tensor.is_floating_point())
        save_file(weights | {key: weights[key] + 1}, folder / part / name, metadata={"format": "pt"})
        after = load(folder).hashes[part]
        assert after != before
        before = after


@pytest.mark.parametrize("left_out", ["index", "shard", "whole"])
def test_shards_that_are_not_those_of_their_index_are_refused(folder, left_out):
    whole = (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    shard(folder, "unet", names)
    if left_out == "index":
        next((folder / "unet").glob("*.index.json")).unlink()
    elif left_out == "shard":
        (folder / "unet" / names[1]).unlink()
    else:
        (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(whole)
    refused(folder, "unet")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", ""])
@pytest.mark.parametrize("part", PARTS)
def test_an_index_that_is_none_is_refused(folder, part, content):
    (folder / part / f"{PARTS[part]}.safetensors.index.json").write_text(content)
    refused(folder, r"index\.json")


def test_a_pickle_beside_the_weights_is_never_opened(folder, tmp_path):
    for part in PARTS:
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "w.pt"):
            (folder / part / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        index = {"weight_map": {"a": "pytorch_model.bin"}}
        (folder / part / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("part", ["text_encoder", "segmenter", "unet"])
def test_an_adapter_that_names_another_model_is_refused(folder, part):
    (folder / part / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    refused(folder, "adapter_config.json")


# --- files that are none ---


@pytest.mark.parametrize("part", CONFIGS)
def test_a_trap_in_place_of_a_configuration_is_named(folder, part, trap):
    (folder / part / CONFIGS[part]).unlink()
    trap(folder / part / CONFIGS[part])
    refused(folder, f"{CONFIGS[part]}|/pipe: ")


@pytest.mark.parametrize("part", CONFIGS)
def test_rubbish_in_place_of_a_configuration_is_refused(folder, part, rubbish):
    (folder / part / CONFIGS[part]).write_bytes(rubbish)
    refused(folder, part)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "merges.txt", "vocab.json", "special_tokens_map.json", "chat_template.jinja"]
)
def test_a_pipe_among_the_tokenizers_files_is_not_waited_for(folder, name):
    (folder / "tokenizer" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "tokenizer" / name)
    refused(folder, f"{name}: .*a pipe")


@pytest.mark.parametrize("name", ["model_index.json", "calibration.json"])
def test_a_trap_beside_the_parts_is_named(folder, name, trap):
    (folder / name).unlink()
    trap(folder / name)
    refused(folder, name)


# --- tables of labels ---


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"1": "a", "2": "b", "3": "c", "4": "background"}},
        {"id2label": {"0": "background", "1": "a", "2": "b", "7": "c"}},
        {"id2label": {"0": "background", "1": "a", "2": "b", "x": "c"}},
        {"id2label": ["background", "a", "b", "c"]},
        {"id2label": {}},
        {"id2label": 4},
        {"palette": [[0, 0, 0], [1, 1], [2, 2, 2], [3, 3, 3]]},
        {"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2], 3]},
        {"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 300]]},
        {"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 0.5]]},
        {"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, None]]},
        {"palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2], ["r", "g", "b"]]},
        {"palette": {"0": [0, 0, 0]}},
        {"palette": []},
        {"background": 5},
        {"background": "background"},
        {"background": {"a": 1}},
    ],
)  # fmt: skip
def test_a_table_of_labels_or_colours_with_gaps_is_refused(folder, changes):
    edit(folder / "segmenter/config.json", **changes)
    refused(folder, "segmenter")
