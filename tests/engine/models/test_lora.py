"""LoRA files in the words of diffusers, PEFT and kohya's trainers, made into what diffusers makes of them."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
from small_adapters import random_factors, save_adapter

from twig.engine.api.errors import CheckpointError
from twig.engine.models.checkpoint import load

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "fc1")
WITH_CONVOLUTIONS = (*ATTENTION, "conv1", "proj_in", "time_emb_proj", "conv_in", "conv_shortcut")


@pytest.fixture
def peft(monkeypatch):
    """PEFT, whichever version there is: transformers asks for a later one than this Python's newest."""
    module = pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    return module


def pipeline(folder):
    """Diffusers' pipeline on a model of its own."""
    parts = load(folder)
    shared = {name: getattr(parts, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    if parts.text_encoder_2 is None:
        return StableDiffusionPipeline(**shared, safety_checker=None, feature_extractor=None)
    return StableDiffusionXLPipeline(**shared, text_encoder_2=parts.text_encoder_2, tokenizer_2=parts.tokenizer_2)


def trained(peft, folder, path, ending, **settings):
    """An adapter as diffusers' own training scripts write it, of UNet and text encoder, with PEFT's settings inside."""
    pipe = pipeline(folder)
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    torch.manual_seed(0)
    layers, metadata = {}, {}
    for name, part in parts.items():
        own = [e for e in ending if any(n.endswith(e) for n, _ in part.named_modules())]
        part.add_adapter(peft.LoraConfig(r=4, init_lora_weights=False, target_modules=own, **settings))
        layers[name] = peft.get_peft_model_state_dict(part)
        metadata[f"{name}_lora_adapter_metadata"] = part.peft_config["default"].to_dict()
    pipe.save_lora_weights(path.parent, layers["unet"], layers["text_encoder"], weight_name=path.name, **metadata)
    return path


def assert_equals_diffusers(folder, path, weight=0.8):
    """Weights of both, text encoders included, and that they are not what they were."""
    pipe = pipeline(folder)
    pipe.load_lora_weights(path, local_files_only=True)
    pipe.fuse_lora(lora_scale=weight)
    pipe.unload_lora_weights()
    ours, plain = load(folder, lora=f"{path}:{weight}"), load(folder)
    changed = 0
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(ours, name) is None:
            continue
        expected = getattr(pipe, name).state_dict()
        for key, value in getattr(ours, name).state_dict().items():
            assert (value - expected[key]).abs().max() <= 1e-6, key
            changed += not torch.equal(value, getattr(plain, name).state_dict()[key])
    return changed


def test_diffusers_with_pefts_settings(peft, tiny_checkpoint, tmp_path):
    """A rank and an alpha for each layer, of convolutions too."""
    path = tmp_path / "adapter.safetensors"
    trained(
        peft, tiny_checkpoint, path, WITH_CONVOLUTIONS,
        lora_alpha=8, rank_pattern={"conv1": 2}, alpha_pattern={"to_q": 3},
    )  # fmt: skip
    assert assert_equals_diffusers(tiny_checkpoint, path) > 30


@pytest.mark.slow
def test_rank_stabilised(peft, tiny_checkpoint, tmp_path):
    path = trained(peft, tiny_checkpoint, tmp_path / "a.safetensors", ATTENTION, lora_alpha=8, use_rslora=True)
    assert assert_equals_diffusers(tiny_checkpoint, path) > 10


def test_kohya(peft, tiny_checkpoint, tmp_path):
    """As diffusers translates its own names, with alphas: of 2 instead of 8 here, so that a weight counts a quarter.

    Of a text encoder's attention diffusers reads nothing then, so it is asked of the UNet alone.
    """
    path, kohya = tmp_path / "a.safetensors", tmp_path / "kohya.safetensors"
    tensors = convert_state_dict_to_kohya(load_file(trained(peft, tiny_checkpoint, path, ATTENTION, lora_alpha=8)))
    tensors = {name.replace("lora_te1_encoder", "lora_te_text_model_encoder"): each for name, each in tensors.items()}
    alphas = {name.replace("lora_down.weight", "alpha"): torch.tensor(2.0) for name in tensors if "lora_down" in name}
    save_file(tensors | alphas, kohya)
    ours, theirs = load(tiny_checkpoint, lora=f"{kohya}:0.8"), load(tiny_checkpoint, lora=f"{path}:0.2")
    for name in ("unet", "text_encoder"):
        for first, second in zip(*(getattr(each, name).parameters() for each in (ours, theirs)), strict=True):
            assert (first - second).abs().max() <= 1e-6
    unet = {name: each for name, each in (tensors | alphas).items() if name.startswith("lora_unet_")}
    save_file(unet, kohya)
    assert assert_equals_diffusers(tiny_checkpoint, kohya) > 10


XL_KEYS = {
    "input_blocks_3_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_5_1_proj_in": "down_blocks.2.attentions.0.proj_in",
    "middle_block_1_transformer_blocks_1_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj",
    "output_blocks_2_1_transformer_blocks_0_attn2_to_v": "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
    "input_blocks_3_0_in_layers_2": "down_blocks.1.resnets.0.conv1",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_0_0_skip_connection": "up_blocks.0.resnets.0.conv_shortcut",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "out_2": "conv_out",
}


def test_kohya_of_sdxl_in_the_original_codes_names(tiny_xl_checkpoint, tmp_path):
    """What each name means is written out here: diffusers mistakes some of them for a model of so few layers."""
    parts, tensors = load(tiny_xl_checkpoint), {}
    factors = random_factors(parts, 3, 4, lambda name: name.startswith("unet."))
    for theirs, ours in XL_KEYS.items():
        down, up = factors[f"unet.{ours}"]
        tensors |= {f"lora_unet_{theirs}.lora_down.weight": down, f"lora_unet_{theirs}.lora_up.weight": up}
    for part, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        key = f"{prefix}text_model_encoder_layers_1_mlp_fc2"
        tensors |= {f"{key}.lora_down.weight": torch.ones(1, 64), f"{key}.alpha": torch.tensor(0.5)}
        tensors[f"{key}.lora_up.weight"] = torch.ones(getattr(parts, part).config.hidden_size, 1)
    save_file(tensors, tmp_path / "xl.safetensors")
    ours = load(tiny_xl_checkpoint, lora=tmp_path / "xl.safetensors")
    for name, layer in ours.adaptable["unet"].items():
        before = parts.unet.get_submodule(name).weight
        if name in XL_KEYS.values():
            down, up = factors[f"unet.{name}"]
            change = (up.flatten(1) @ down.flatten(1)).view_as(before)
            assert (layer.weight - before - change).abs().max() <= 1e-6, name
        else:
            assert torch.equal(layer.weight, before), name
    for part in ("text_encoder", "text_encoder_2"):
        changed = {
            name: float((layer.weight - parts.adaptable[part][name].weight).abs().max())
            for name, layer in ours.adaptable[part].items()
        }
        assert [name for name, much in changed.items() if much] == [
            name for name in changed if name.endswith("layers.1.mlp.fc2")
        ]
        assert max(changed.values()) == pytest.approx(0.5)


def test_kohya_of_sdxl_as_diffusers_reads_it(peft, tiny_xl_checkpoint, tmp_path):
    parts, tensors = load(tiny_xl_checkpoint), {}
    factors = random_factors(parts, 3, 4, lambda name: name.startswith("unet."))
    for theirs, ours in list(XL_KEYS.items())[:6]:
        down, up = factors[f"unet.{ours}"]
        tensors |= {f"lora_unet_{theirs}.lora_down.weight": down, f"lora_unet_{theirs}.lora_up.weight": up}
    save_file(tensors, tmp_path / "xl.safetensors")
    assert assert_equals_diffusers(tiny_xl_checkpoint, tmp_path / "xl.safetensors") == 6


def test_a_convolution_in_three_factors(tiny_checkpoint, tmp_path):
    """LoCon's down of one pixel, mid of the window, up of one pixel: their product."""
    parts, name = load(tiny_checkpoint), "down_blocks.1.resnets.0.conv2"
    before = parts.unet.get_submodule(name).weight
    torch.manual_seed(0)
    down, mid, up = (
        torch.randn(3, before.shape[1], 1, 1),
        torch.randn(3, 3, 3, 3),
        torch.randn(before.shape[0], 3, 1, 1),
    )
    key = "lora_unet_" + name.replace(".", "_")
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid, f"{key}.lora_up.weight": up}
    save_file(tensors, tmp_path / "locon.safetensors")
    ours = load(tiny_checkpoint, lora=[tmp_path / "locon.safetensors"])
    change = torch.einsum("mr,rshw,sk->mkhw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    assert (ours.unet.get_submodule(name).weight - before - change).abs().max() <= 1e-4


def test_two_files_add_up_and_change_the_hashes_of_what_they_change(tiny_checkpoint, tmp_path):
    parts = load(tiny_checkpoint)
    first = save_adapter(tmp_path / "a.safetensors", parts, 1, taken=lambda name: "unet" in name and "attn" in name)
    second = save_adapter(tmp_path / "b.safetensors", parts, 2, taken=lambda name: "unet" in name and "to_q" in name)
    alone, both = load(tiny_checkpoint, lora=f"{first}:-0.5"), load(tiny_checkpoint, lora=[f"{first}:-0.5", second])
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = random_factors(parts, 2, 4, lambda each: "unet" in each and "to_q" in each)[f"unet.{name}"]
    change = both.unet.get_submodule(name).weight - alone.unet.get_submodule(name).weight
    assert (change - up @ down).abs().max() <= 1e-6
    assert both.hashes["text_encoder"] == parts.hashes["text_encoder"]
    assert len({each.hashes["unet"] for each in (parts, alone, both)}) == 3
    assert len({each.hashes.get("lora") for each in (parts, alone, both)}) == 3


def adapter_of(path, **tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
WHOLE = {f"{Q}.lora_A.weight": torch.ones(2, 32), f"{Q}.lora_B.weight": torch.ones(32, 2)}
REFUSED = {
    "DoRA": ({f"{Q}.lora_magnitude_vector": torch.ones(32)}, "holds DoRA .*to_q.lora_magnitude_vector"),
    "LoHa": ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.ones(2, 2)}, "holds LoHa"),
    "LoKr": ({"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": torch.ones(2, 2)}, "holds LoKr"),
    "GLoRA": ({"lora_unet_mid_block_attentions_0_proj_in.a1.weight": torch.ones(2, 2)}, "holds GLoRA"),
    "bias": ({f"{Q}.lora_B.bias": torch.ones(2)}, "LoRA of biases"),
    "difference": ({"lora_unet_conv_in.diff": torch.ones(2)}, "a whole difference of weights"),
    "nowhere": ({"unet.no.such.layer.lora_A.weight": torch.ones(2, 2)}, "holds unet.no.such.layer.lora_A.weight"),
    "no end": ({f"{Q}.weight": torch.ones(2, 2)}, r"to_q\.weight, which is none of a LoRA's"),
    "twice": ({f"{Q}.lora.down.weight": torch.ones(2, 32)}, "one tensor under two names"),
    "alpha": ({f"{Q}.alpha": torch.ones(2)}, "an alpha of 2 numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_refused_by_name(tiny_checkpoint, tmp_path, name):
    tensors, message = REFUSED[name]
    path = adapter_of(tmp_path / "a.safetensors", **WHOLE | tensors)
    with pytest.raises(CheckpointError, match=message):
        load(tiny_checkpoint, adapters={"a": path})


def test_another_models_adapter_is_said_to_be_one(tiny_checkpoint, tiny_xl_checkpoint, tmp_path):
    cross = Q.replace("attn1.to_q", "attn2.to_k")
    tensors = {f"{cross}.lora_A.weight": torch.ones(2, 2048), f"{cross}.lora_B.weight": torch.ones(32, 2)}
    second = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    whole = {f"{second}.lora_A.weight": torch.ones(2, 48), f"{second}.lora_B.weight": torch.ones(64, 2)}
    path = adapter_of(tmp_path / "xl.safetensors", **tensors | whole)
    with pytest.raises(CheckpointError, match=r"xl\.safetensors is an adapter of another model: of SDXL, and this"):
        load(tiny_checkpoint, lora=path)
    path = adapter_of(tmp_path / "other.safetensors", **WHOLE | {f"{Q}.lora_A.weight": torch.ones(2, 31)})
    with pytest.raises(CheckpointError, match=r"\(2, 31\) and \(32, 2\), which do not fit a weight of \(32, 32\)"):
        load(tiny_xl_checkpoint, lora=path)


def test_half_an_adapter_is_refused(tiny_checkpoint, tmp_path):
    path = adapter_of(tmp_path / "half.safetensors", **{f"{Q}.lora_A.weight": torch.ones(2, 32)})
    with pytest.raises(CheckpointError, match=r"lacks the up factor of unet\.mid_block"):
        load(tiny_checkpoint, lora=path)


def test_what_peft_writes_beside_its_file_counts(tiny_checkpoint, tmp_path):
    tensors = {f"base_model.model.{name.removeprefix('unet.')}": tensor for name, tensor in WHOLE.items()}
    path = adapter_of(tmp_path / "adapter_model.safetensors", **tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    before, after = (load(tiny_checkpoint, lora=each).unet.get_submodule(Q[5:]).weight for each in ((), path))
    assert torch.allclose(after - before, torch.full((32, 32), 6.0))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="trained with use_dora"):
        load(tiny_checkpoint, lora=path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "OFT"}))
    with pytest.raises(CheckpointError, match="is a OFT of PEFT; LORA is served"):
        load(tiny_checkpoint, lora=path)


def test_files_weights_and_names_are_checked(tiny_checkpoint, tmp_path):
    path = adapter_of(tmp_path / "a.safetensors", **WHOLE)
    for lora, message in (
        (tmp_path / "none.safetensors", "there is no file"),
        (tmp_path, "is no safetensors file"),
        (f"{path}:1000", "weight is from -100 to 100"),
        (f"{path}:nan", "weight is from -100 to 100"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(tiny_checkpoint, lora=lora)
    with pytest.raises(CheckpointError, match="'a b' is no name of an adapter"):
        load(tiny_checkpoint, adapters={"a b": path})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="corrupt or cut short"):
        load(tiny_checkpoint, lora=path)
