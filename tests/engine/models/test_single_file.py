"""Single files of safetensors, against diffusers' own reading of them."""

from functools import cache

import narrow_models
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from small_requests import request

from twig.engine.api.errors import CheckpointError, TwigWarning
from twig.engine.api.mechanisms import Avoidance
from twig.engine.cli.main import run
from twig.engine.engine import Engine
from twig.engine.models import single_file
from twig.engine.models.checkpoint import load, sketched
from twig.engine.models.outline import outlined

UNSAID = "ignore:.*does not say what its UNet predicts"


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name


@pytest.fixture(scope="module")
def loaded(narrow):
    """Return a function: a family's model out of its single file."""
    return cache(lambda family: load(narrow(family)[2]))


@pytest.mark.filterwarnings(UNSAID)
@pytest.mark.parametrize("family", narrow_models.FAMILIES)
def test_a_single_file_draws_what_diffusers_draws_of_it(narrow, loaded, family):
    _, folder, file = narrow(family)
    engine = Engine(loaded(family))
    asked = request(
        "a lighthouse in a storm", 2, width=64, height=64, avoidance=Avoidance.off(), similarity={"rule": None}
    )
    (result,) = engine.generate(asked)
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_single_file(file, config=str(folder), local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, steps_offset=1)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(result.attempts[-1].seed)
    options = {"num_inference_steps": 2, "guidance_scale": asked.final.guidance_scale, "generator": generator}
    expected = np.asarray(pipe(asked.prompt, width=64, height=64, **options).images[0]).astype(int)
    assert expected.std() > 1
    assert np.abs(np.asarray(result.image).astype(int) - expected).max() <= 2
    assert result.verdict == "not judged"
    assert engine.manifest(result).model.source == str(file)


@pytest.mark.filterwarnings(UNSAID)
@pytest.mark.parametrize("family", narrow_models.FAMILIES)
def test_a_single_file_is_the_model_of_its_folder(narrow, family):
    pipe, folder, file = narrow(family)
    outline = outlined(file)
    mine, theirs = sketched(outline), sketched(outlined(folder))
    for name, part in outline.files.items():
        assert_same(part.loaded(torch.float32, "cpu").state_dict(), getattr(pipe, name).state_dict())
    assert mine.size == theirs.size
    assert dict(mine.scheduler.config) == dict(theirs.scheduler.config)
    assert [t.pad_token_id for t in mine.tokenizers] == [t.pad_token_id for t in theirs.tokenizers]
    assert mine.vae.config.scaling_factor == theirs.vae.config.scaling_factor
    assert (mine.upcast_vae, mine.zero_empty) == (theirs.upcast_vae, theirs.zero_empty)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_are_cast_from_what_they_are_stored_in(narrow, tmp_path, stored):
    pipe = narrow("sd15")[0]
    file = narrow_models.save(narrow_models.single_file(pipe), tmp_path / "stored.safetensors", stored)
    for name, part in single_file.model(file).files.items():
        wanted = {key: tensor.to(stored) for key, tensor in getattr(pipe, name).state_dict().items()}
        assert_same(part.loaded(torch.float16 if name == "vae" else torch.float32, "cpu").state_dict(), wanted)


def test_averages_are_told_of_and_taken_where_they_are_asked_for(narrow, tmp_path):
    pipe, _, _ = narrow("sd15")
    tensors = narrow_models.single_file(pipe)
    for name in [name for name in tensors if name.startswith("model.")]:
        tensors["model_ema." + "".join(name.split(".")[1:])] = tensors[name] + 1
    file = narrow_models.save(tensors, tmp_path / "both.safetensors")
    with pytest.warns(TwigWarning, match="variant='ema' takes the average"):
        plain = outlined(file).files["unet"]
    averaged = outlined(file, variant="ema").files["unet"]
    found = averaged.loaded(torch.float32, "cpu").state_dict()
    for name, tensor in plain.loaded(torch.float32, "cpu").state_dict().items():
        assert torch.equal(found[name], tensor + 1), name
    assert plain.digest() != averaged.digest()
    with pytest.raises(CheckpointError, match="no weights of the variant='fp16'"):
        load(file, variant="fp16")


@pytest.mark.parametrize(
    ("said", "predicted", "side"),
    [
        ({"modelspec.prediction_type": "epsilon", "modelspec.resolution": "512x512"}, "epsilon", 512),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon", 512),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction", 768),
        ({"modelspec.prediction_type": "v", "modelspec.resolution": "896x896"}, "v_prediction", 896),
    ],
)
def test_what_a_unet_predicts_is_read_off_the_files_own_words(narrow, tmp_path, recwarn, said, predicted, side):
    file = narrow_models.save(narrow_models.single_file(narrow("sd21")[0]), tmp_path / "said.safetensors", **said)
    outline = outlined(file)
    assert outline.given["scheduler"].config.prediction_type == predicted
    assert outline.files["unet"].config["sample_size"] == side // 8
    assert not recwarn


def test_what_a_unet_predicts_can_be_said(narrow):
    _, folder, file = narrow("sd21")
    with pytest.warns(TwigWarning, match="say prediction_type='epsilon'"):
        assert outlined(file).given["scheduler"].config.prediction_type == "v_prediction"
    for source in (file, folder):
        assert sketched(outlined(source, prediction_type="epsilon")).scheduler.config.prediction_type == "epsilon"
    with pytest.raises(CheckpointError, match="'noise' is not served; those served are epsilon, v_prediction, sample"):
        load(folder, prediction_type="noise")


def test_marks_of_velocity_and_zero_terminal_snr_are_read(narrow, tmp_path):
    tensors = narrow_models.single_file(narrow("sdxl")[0]) | {"v_pred": torch.ones(()), "ztsnr": torch.ones(())}
    config = sketched(outlined(narrow_models.save(tensors, tmp_path / "v.safetensors"))).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("family", "form"),
    [("sd15", "control_model."), ("sd15", ""), ("sd15", "diffusers"), ("sdxl", ""), ("sdxl", "diffusers")],
)
def test_a_controlnet_is_read_in_every_form(narrow, tmp_path, family, form):
    pipe = narrow(family)[0]
    torch.manual_seed(5)
    controlnet = narrow_models.build_controlnet(pipe.unet)
    tensors = controlnet.state_dict() if form == "diffusers" else narrow_models.unet_tensors(controlnet)
    prefix = "" if form == "diffusers" else form
    file = narrow_models.save({prefix + name: t for name, t in tensors.items()}, tmp_path / "control.safetensors")
    found = single_file.controlnet(file).loaded(torch.float32, "cpu")
    assert_same(found.state_dict(), controlnet.state_dict())
    for name in ("attention_head_dim", "conditioning_embedding_out_channels", "block_out_channels"):
        wanted = controlnet.config[name]
        assert found.config[name] == (list(wanted) if isinstance(wanted, tuple) else wanted), name


def old_attention(name):
    for new, old in (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")):
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize("form", ["first_stage_model.", "", "diffusers", "old", "model"])
def test_an_autoencoder_is_read_in_every_form(narrow, tmp_path, form):
    pipe, _, file = narrow("sd15")
    torch.manual_seed(6)
    vae = pipe.vae if form == "model" else narrow_models.build_vae(xl=False)
    if form in ("diffusers", "old"):
        tensors = {old_attention(name) if form == "old" else name: t for name, t in vae.state_dict().items()}
    else:
        tensors = {form + name: t for name, t in narrow_models.vae_tensors(vae).items()}
    if form != "model":
        file = narrow_models.save(tensors | {"loss.logvar": torch.ones(())}, tmp_path / "vae.safetensors")
    found = single_file.autoencoder(file, xl=False).loaded(torch.float32, "cpu")
    assert_same(found.state_dict(), vae.state_dict())


def test_an_autoencoder_beside_sdxl_scales_as_sdxls(narrow, tmp_path):
    pipe, folder, _ = narrow("sdxl")
    file = narrow_models.save(narrow_models.vae_tensors(pipe.vae), tmp_path / "vae.safetensors")
    components = sketched(outlined(folder, vae=file))
    assert components.vae.config.scaling_factor == 0.13025
    assert components.upcast_vae


def test_a_tiny_autoencoder_is_read(tmp_path):
    vae = AutoencoderTiny()
    file = narrow_models.save(vae.state_dict(), tmp_path / "taesd.safetensors")
    found = single_file.autoencoder(file, xl=False).loaded(torch.float32, "cpu")
    assert isinstance(found, AutoencoderTiny)
    assert_same(found.state_dict(), vae.state_dict())


def test_a_file_without_an_autoencoder_takes_one(narrow, tmp_path):
    pipe, folder, _ = narrow("sd15")
    tensors = {n: t for n, t in narrow_models.single_file(pipe).items() if not n.startswith("first_stage_model.")}
    file = narrow_models.save(tensors, tmp_path / "without.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no autoencoder; name one with vae=\.\.\."):
        outlined(file)
    assert_same(load(file, vae=folder / "vae").vae.state_dict(), pipe.vae.state_dict())


def test_hashes_are_of_each_part_alone(narrow, loaded, tmp_path):
    tensors = narrow_models.single_file(narrow("sd15")[0])
    tensors["first_stage_model.decoder.conv_out.bias"] = tensors["first_stage_model.decoder.conv_out.bias"] + 1
    files = outlined(narrow_models.save(tensors, tmp_path / "other.safetensors")).files
    before = loaded("sd15").hashes
    assert {name for name, part in files.items() if before[name] != part.digest()} == {"vae"}


def changed(tensors, **changes):
    return {name: t for name, t in {**tensors, **changes}.items() if t is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.diffusion_model.extra.weight": torch.ones(2)}, "none of a UNet2DConditionModel's.*extra.weight"),
        ({"model.diffusion_model.input_blocks.1.0.lora.weight": torch.ones(2)}, "input_blocks.1.0.lora.weight"),
        ({"embedding_manager.x": torch.ones(2)}, "none of Stable Diffusion 1.x's, among them embedding_manager.x"),
        ({"model.diffusion_model.out.2.bias": None}, "lacks 1 tensors of a UNet2DConditionModel.*conv_out.bias"),
        ({"model.diffusion_model.out.2.bias": torch.ones(5)}, r"out.2.bias in the shape \(5,\).*has \(4,\)"),
        ({"first_stage_model.decoder.conv_in.weight": None}, "AutoencoderKL, among them decoder.conv_in.weight"),
        ({"model.diffusion_model.out.2.bias": torch.ones(4, dtype=torch.int8)}, "out.2.bias as I8"),
    ],
)
def test_a_file_that_is_not_what_it_seems_is_refused_by_the_tensor(narrow, tmp_path, changes, said):
    tensors = changed(narrow_models.single_file(narrow("sd15")[0]), **changes)
    with pytest.raises(CheckpointError, match=said):
        sketched(outlined(narrow_models.save(tensors, tmp_path / "wrong.safetensors")))


UNET, CLIP = "model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.transformer.text_model.x"
HELD = {
    "inpainting": ({UNET: (32, 9, 3, 3), CLIP: (2,)}, "holds an inpainting model, which is not served"),
    "pix2pix": ({UNET: (32, 8, 3, 3), CLIP: (2,)}, "holds a model that edits pictures"),
    "depth": ({UNET: (32, 5, 3, 3), "depth_model.x": (2,)}, "holds a model that reads depth"),
    "upscaler": ({UNET: (32, 7, 3, 3)}, "holds an upscaler"),
    "unet": ({UNET: (32, 4, 3, 3)}, "holds a UNet and no text encoder"),
    "refiner": ({UNET: (32, 4, 3, 3), "conditioner.embedders.0.model.x": (2,)}, "holds SDXL's refiner.*not served"),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x": (2,)}, "holds Stable Diffusion 3.*not served"),
    "flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (2,)}, "holds a Flux model.*not served"),
    "playground": ({UNET: (32, 4, 3, 3), "edm_mean": (4,)}, r"holds Playground v2\.5.*not served"),
    "scaled": ({UNET: (32, 4, 3, 3), CLIP: (2,), "scaled_fp8": (2,)}, "holds a model in eight bits.*not served"),
    "bitsandbytes": ({UNET: (32, 4, 3, 3), f"{UNET}.quant_state.bitsandbytes__nf4": (8,)}, "in four bits.*not served"),
    "cosxl": ({UNET: (32, 4, 3, 3), "edm_vpred.sigma_max": (1,)}, "holds CosXL, which is not served"),
    "bare unet": ({"input_blocks.0.0.weight": (32, 4, 3, 3)}, "holds a UNet without the rest of its model"),
    "motion": ({"down_blocks.0.motion_modules.0.x": (2,)}, "holds a model with motion modules"),
    "lora": ({"lora_unet_down.lora_up.weight": (2,)}, r"holds a LoRA, not a model; give it with lora=\.\.\."),
    "inversion": ({"emb_params": (2, 64)}, r"holds a textual inversion.*give it with embeddings=\.\.\."),
    "controlnet": ({"control_model.time_embed.0.weight": (2,)}, r"holds a ControlNet.*give it with controlnet=\.\.\."),
    "control-lora": ({"lora_controlnet": (1,)}, "holds a control-LoRA.*not served"),
    "union": ({"task_embedding": (1,), "controlnet_cond_embedding.x": (1,)}, "holds a union ControlNet"),
    "adapter": ({"adapter.body.0.in_conv.weight": (2,)}, "holds a T2I-Adapter"),
    "ip-adapter": ({"image_proj.proj.weight": (2,)}, "holds an IP-Adapter"),
    "vae": ({"decoder.mid.block_1.conv1.weight": (2,)}, r"holds an autoencoder, not a model; give it with vae=\.\.\."),
    "segmenter": ({"decode_head.classifier.weight": (2,)}, r"holds a segmenter.*folder with segmenter=\.\.\."),
    "diffusers": ({"down_blocks.0.resnets.0.conv1.weight": (2,)}, "holds a UNet without the rest of its model"),
    "text": ({"text_model.embeddings.x": (2,)}, "holds a text encoder"),
    "else": ({"blocks.0.attn.weight": (2,)}, r"holds nothing that is known here.*blocks\.0\.attn\.weight"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HELD)
def test_what_is_not_served_in_a_single_file_is_refused_by_its_name(tmp_path, kind):
    shapes, said = HELD[kind]
    file = narrow_models.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load(file)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("controlnet", "holds a model, not a ControlNet; name it as the model"),
        ("segmenter", "is a single file; a segmenter is given as its folder"),
    ],
)
def test_a_file_in_another_parts_place_is_said_to_be_what_it_is(narrow, part, said):
    _, folder, file = narrow("sd15")
    with pytest.raises(CheckpointError, match=said):
        load(folder, **{part: file})


def test_what_is_of_folders_alone_is_refused_of_a_file(narrow):
    with pytest.raises(CheckpointError, match="is a file, and revision='main' is of a folder or hub id"):
        load(narrow("sd15")[2], revision="main")


def test_engines_of_one_model_share_its_networks_memory(loaded):
    one, other = (Engine(loaded("sd15")) for _ in range(2))
    pairs = zip(one.components.unet.parameters(), other.components.unet.parameters(), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)


def test_the_command_line_draws_from_a_single_file_and_replays(narrow, tmp_path, capsys):
    size = ["--width", "64", "--height", "64", "--steps", "1", "--preset", "off", "--out", str(tmp_path)]
    assert run(["generate", "a lighthouse", "--model", str(narrow("sd15")[2]), *size]) == 0
    (manifest,) = tmp_path.glob("twig-*-0.json")
    assert run(["inspect", str(manifest), "--replay"]) == 0
    assert "not judged" in capsys.readouterr().out


def test_the_command_line_speaks_of_its_options(narrow, tmp_path, capsys):
    pipe = narrow("sd15")[0]
    tensors = {n: t for n, t in narrow_models.single_file(pipe).items() if not n.startswith("first_stage_model.")}
    without = narrow_models.save(tensors, tmp_path / "without.safetensors")
    vae = narrow_models.save(narrow_models.vae_tensors(pipe.vae), tmp_path / "vae.safetensors")
    for model, said in (
        (without, "holds no autoencoder; name one with --vae"),
        (vae, "holds an autoencoder, not a model; give it with --vae"),
    ):
        assert run(["generate", "a lighthouse", "--model", str(model)]) == 2
        assert said in capsys.readouterr().err
