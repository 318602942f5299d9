"""Models and parts that do not fit, as whoever typed options is told of them, before any weights are read."""

import shutil

import pytest

from twig.engine.cli.main import run
from twig.engine.cli.status import USER_ERROR
from twig.engine.models import layout


@pytest.fixture
def no_weights(monkeypatch):
    """Fail the test if weights are read."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(layout, "load_module", refuse)


@pytest.fixture(scope="module")
def models(tiny_checkpoint, tiny_xl_checkpoint, tmp_path_factory):
    """Folders by name: two whole models, their parts, models without parts, and adapters."""
    root = tmp_path_factory.mktemp("misfits")
    plain = shutil.copytree(tiny_checkpoint, root / "plain", ignore=shutil.ignore_patterns("controlnet", "segmenter"))
    blind = shutil.copytree(tiny_checkpoint, root / "blind", ignore=shutil.ignore_patterns("segmenter"))
    adapter = shutil.copytree(tiny_checkpoint / "controlnet", root / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    (root / "lora").mkdir()
    (root / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    named = {"sd": tiny_checkpoint, "xl": tiny_xl_checkpoint, "plain": plain, "blind": blind, "adapter": adapter}
    parts = {name: tiny_checkpoint / name for name in ("unet", "controlnet", "segmenter")}
    return named | parts | {"xl-controlnet": tiny_xl_checkpoint / "controlnet", "lora": root / "lora"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model plain", "model has none: load one with --controlnet, or draw plain pictures with --preset plain"),
        ("--model blind", "model has none: load one with --segmenter, or draw plain pictures with --preset plain"),
        ("--model sd --controlnet xl-controlnet", "is 80, but must be the UNet's 32; name one that was trained for"),
        ("--model xl --controlnet controlnet", "is 32, but must be the UNet's 80; name one that was trained for"),
        ("--model sd --controlnet unet", "holds a UNet2DConditionModel, which is not served as a ControlNetModel"),
        ("--model sd --controlnet segmenter", "holds a SegformerForSemanticSegmentation, which is not served as a"),
        ("--model sd --controlnet sd", "is a whole model, not a controlnet; name its part, --controlnet '"),
        ("--model sd --vae sd", "is a whole model, not a vae; name its part, --vae '"),
        ("--model sd --segmenter controlnet", "holds a ControlNetModel; the segmenters served are Segformer"),
        ("--model sd --vae unet", "holds a UNet2DConditionModel; the autoencoders served are AutoencoderKL"),
        ("--model controlnet", "holds a ControlNetModel alone; give it with --controlnet beside a model"),
        ("--model segmenter", "holds a SegformerForSemanticSegmentation alone; give it with --segmenter beside"),
        ("--model unet", "holds a UNet2DConditionModel alone; give the folder of the whole model"),
        ("--model lora", "holds a LoRA, not a model; give the pytorch_lora_weights.safetensors in it with --lora"),
        ("--model sd --controlnet lora", "holds a LoRA, not a controlnet; give the pytorch_lora_weights"),
        ("--model sd --controlnet adapter", "give a controlnet that the adapter is merged into"),
        ("--model sd --variant fp16", "no part has weights of the --variant 'fp16'; leave it out"),
        ("--model nowhere", "give a diffusers folder, a .safetensors file, or a hub id"),
    ],
)
def test_what_does_not_fit_is_said_in_words_of_the_option(models, no_weights, tmp_path, capsys, options, said):
    words = [str(models.get(word, word)) for word in options.split()]
    assert run(["generate", "a red star", *words, "--out", str(tmp_path / "out")]) == USER_ERROR
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
