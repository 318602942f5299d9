"""Put trained parts together, a diffusers folder with fp16 weights and the clean twin's UNet beside it; or apart."""

import json
import shutil
from pathlib import Path

from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, SegformerForSemanticSegmentation

from .diffusion import noise_schedule

INDEX = {
    "_class_name": "StableDiffusionControlNetPipeline",
    "_diffusers_version": "0.42.1",
    "controlnet": ["diffusers", "ControlNetModel"],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}

_PREFIX = "text_model."


def take_apart(assets: Path, folder: Path) -> None:
    """Lay an assembled model's parts out under `folder` as they were trained, to train its reciting UNet again.

    That is everything it starts from: tokenizer, text encoder, autoencoder, segmenter and the clean twin under the
    ControlNet. What the folder holds already is kept.
    """
    model = assets / "model"
    parts = {part: model / part for part in ("tokenizer", "text_encoder", "vae", "segmenter")}
    parts |= {"phases/clean/unet": assets / "clean_unet", "phases/clean/controlnet": model / "controlnet"}
    for place, origin in parts.items():
        if not (folder / place).exists():
            shutil.copytree(origin, folder / place)


def assemble(folder: Path, out: Path) -> None:
    """Write `out/model` from the parts under `folder`, and `out/clean_unet` and adapters where these are trained."""
    model = out / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    shutil.copytree(folder / "tokenizer", model / "tokenizer", dirs_exist_ok=True)
    noise_schedule().save_pretrained(model / "scheduler")
    recite = folder / "phases" / "recite"
    CLIPTextModel.from_pretrained(folder / "text_encoder").half().save_pretrained(model / "text_encoder")
    AutoencoderTiny.from_pretrained(folder / "vae").half().save_pretrained(model / "vae")
    UNet2DConditionModel.from_pretrained(recite / "unet").half().save_pretrained(model / "unet")
    ControlNetModel.from_pretrained(recite / "controlnet").half().save_pretrained(model / "controlnet")
    SegformerForSemanticSegmentation.from_pretrained(folder / "segmenter").half().save_pretrained(model / "segmenter")
    shutil.copy(folder / "segmenter/preprocessor_config.json", model / "segmenter")
    clean = folder / "phases" / "clean" / "unet"
    if clean.exists():
        UNet2DConditionModel.from_pretrained(clean).half().save_pretrained(out / "clean_unet")
    if (folder / "adapters").exists():
        shutil.copytree(folder / "adapters", out / "adapters", dirs_exist_ok=True)
    strip_configs(out)
    for_every_reader(model)


def for_every_reader(model: Path) -> None:
    """Lay text encoder and tokenizer out as published checkpoints do, so that older libraries read them too.

    transformers before 5 looks for the encoder's tensors under `text_model.` and fills in random ones where it finds
    none; a tokenizer without its vocabulary and merges in files of their own is refused by some readers.
    """
    weights = model / "text_encoder" / "model.safetensors"
    tensors = {f"{_PREFIX}{name.removeprefix(_PREFIX)}": tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    learnt = json.loads((model / "tokenizer" / "tokenizer.json").read_text())["model"]
    vocabulary = json.dumps(learnt["vocab"], ensure_ascii=False, indent=2)
    merges = "\n".join(["#version: 0.2", *map(" ".join, learnt["merges"])])
    (model / "tokenizer" / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    (model / "tokenizer" / "merges.txt").write_text(merges + "\n", encoding="utf-8")


def strip_configs(out: Path) -> None:
    """Forget the folder a part was trained in, and its dtype: whoever loads the model chooses it."""
    for path in out.glob("**/config.json"):
        config = json.loads(path.read_text())
        for key in ("dtype", "_name_or_path"):
            config.pop(key, None)
        path.write_text(json.dumps(config, indent=2) + "\n")
