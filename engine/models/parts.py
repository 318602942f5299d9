"""Parts of a checkpoint that are more than a network of one class: each folder read as what it says it holds."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DDIMScheduler
from torch import nn
from transformers import CLIPTokenizer

from ..api.errors import CheckpointError
from ..api.reading import shown
from ..sampling.sampler import Sampler, sampler_of
from . import configs, layout
from .preprocessing import Preprocessing
from .segmentation import Segmenter

SEGMENTERS = {
    "SegformerForSemanticSegmentation": "SegformerImageProcessor",
    "UperNetForSemanticSegmentation": "SegformerImageProcessor",
    "Mask2FormerForUniversalSegmentation": "Mask2FormerImageProcessor",
    "OneFormerForUniversalSegmentation": "OneFormerImageProcessor",
    "BeitForSemanticSegmentation": "BeitImageProcessor",
    "DPTForSemanticSegmentation": "DPTImageProcessor",
}
"""Segmentation models of transformers that are served, and their usual image processors."""

Vae: TypeAlias = AutoencoderKL | AutoencoderTiny


def tokenizer(part: Path) -> CLIPTokenizer:
    """Read CLIP's tokenizer."""
    if (part / "tokenizer_config.json").exists():
        configs.check_tokenizer(part, layout.read_json(part / "tokenizer_config.json"))
    try:
        return CLIPTokenizer.from_pretrained(part, local_files_only=True)
    except layout.BROKEN as error:
        raise CheckpointError(f"{part} cannot be loaded as a CLIPTokenizer: {shown(error, 600)}") from error


def vae_class(part: Path) -> type[Vae]:
    """Class of the autoencoder in `part`."""
    name = layout.read_json(part / "config.json").get("_class_name")
    classes: dict[Any, type[Vae]] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if name not in classes:
        raise CheckpointError(f"{part} holds a {name}; the autoencoders served are {', '.join(classes)}")
    return classes[name]


def controlnet(network: ControlNetModel) -> ControlNetModel:
    """Turn round, once it has weights, a ControlNet that reads blue, green, red, so that it reads red, green, blue."""
    first = network.controlnet_cond_embedding.conv_in
    if network.config.controlnet_conditioning_channel_order == "bgr" and not first.weight.is_meta:
        first.weight = nn.Parameter(first.weight.flip(1), requires_grad=False)  # the old ones may be another's too
        network.register_to_config(controlnet_conditioning_channel_order="rgb")
    return network


def scheduler(part: Path, forced: dict[str, Any]) -> DDIMScheduler:
    """Read the noise schedule, whichever scheduler it is of: without clipping, and with what `forced` sets."""
    return schedule(part, layout.read_json(part / "scheduler_config.json"), forced)


def schedule(part: Path | str, config: dict[str, Any], forced: dict[str, Any]) -> DDIMScheduler:
    """Make the noise schedule of a scheduler's configuration. part: where it is from, for messages."""
    if "beta_schedule" not in config:
        raise CheckpointError(
            f"{part} holds a {config.get('_class_name')}, which has no beta schedule; it is not served"
        )
    configs.check_schedule(part, config)
    known = inspect.signature(DDIMScheduler.__init__).parameters
    kept = {name: value for name, value in config.items() if name in known}
    try:
        return DDIMScheduler(**kept | {"clip_sample": False} | forced)
    except layout.BROKEN as error:
        raise CheckpointError(f"{part} cannot be loaded as a noise schedule: {shown(error, 600)}") from error


def sampler(part: Path, xl: bool) -> Sampler:
    """What the scheduler in `part`, which has been checked, says of how it steps."""
    return sampler_of(layout.read_json(part / "scheduler_config.json"), xl)


def segmenter(part: Path, make: Callable[[type, str], Any]) -> Segmenter:
    """A segmentation model, made by `make` of its class and its part's name, with its own preprocessing."""
    named = layout.class_named(layout.read_json(part / "config.json"))
    if named is None or named not in SEGMENTERS:
        found = "a model of no named architecture" if named is None else f"a {shown(named)}"
        raise CheckpointError(f"{part} holds {found}; the segmenters served are {', '.join(SEGMENTERS)}")
    preprocessor = layout.read_json(part / "preprocessor_config.json")
    try:
        preprocessing = Preprocessing.from_config(preprocessor, SEGMENTERS[named])
    except layout.BROKEN as error:
        raise CheckpointError(f"{part / 'preprocessor_config.json'} says {shown(error, 600)}") from error
    return Segmenter(make(getattr(transformers, named), "segmenter"), preprocessing)
