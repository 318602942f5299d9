"""What the index of a model's folder may say, and what is said of a folder that is no model's."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api.errors import CheckpointError, TwigWarning
from ..api.reading import shown
from . import configs, layout
from .parts import SEGMENTERS

XL_PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline", "StableDiffusionXLImg2ImgPipeline")

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    *XL_PIPELINES,
)
"""Pipelines of diffusers whose folders are read."""

REQUIRED = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
XL_REQUIRED = (*REQUIRED, "tokenizer_2", "text_encoder_2")
OPTIONAL = ("controlnet", "segmenter")
WITHOUT_WEIGHTS = ("tokenizer", "tokenizer_2", "scheduler")
INDEX_KEYS = frozenset({
    "_class_name", "_diffusers_version", "_name_or_path", "safety_checker", "feature_extractor", "image_encoder",
    "requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "requires_aesthetics_score",
})  # fmt: skip
"""What else an index says: parts that check or describe pictures, and settings."""


def pipeline_of(folder: Path, index: Mapping[str, Any]) -> str:
    """Name of the pipeline that an index is of, if it is served."""
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(f"{folder} holds a {pipeline}; the layouts served are those of {', '.join(PIPELINES)}")
    if index.get("requires_aesthetics_score"):
        raise CheckpointError(f"{folder} asks for an aesthetics score, as SDXL's refiner does; give the base model")
    return str(pipeline)


_PLACES = {"ControlNetModel": "controlnet", "AutoencoderKL": "vae", "AutoencoderTiny": "vae"}


def check_whole(folder: Path) -> None:
    """Say of the folder of a part, or of an adapter, in a whole model's place what it is."""
    layout.check_no_adapter(folder, "model")
    if not os.path.lexists(folder / "model_index.json") and os.path.lexists(folder / "config.json"):
        held = layout.class_named(layout.read_json(folder / "config.json")) or "part of a model"
        place = "segmenter" if held in SEGMENTERS else _PLACES.get(held)
        advice = f"give it with {place}=... beside a model" if place else "give the folder of the whole model"
        raise CheckpointError(f"{shown(folder)} has no model_index.json: it holds a {shown(held, 80)} alone; {advice}")


def check_index(folder: Path, index: dict[str, Any]) -> None:
    """Every part that the index names must be one that is read, or one that a picture does not depend on."""
    configs.check_code(folder, index)
    for name, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        if name in XL_REQUIRED + OPTIONAL:
            if library is not None and library not in ("diffusers", "transformers"):
                raise CheckpointError(
                    f"{folder} takes its {name} from {shown(repr(value), 80)}, code that is not run here"
                )
        elif name not in INDEX_KEYS and value not in (None, [None, None]):
            raise CheckpointError(
                f"{folder} names a part {shown(name, 80)}, {shown(repr(value), 80)}, which is not served; the parts "
                f"served are {', '.join(XL_REQUIRED + OPTIONAL)}"
            )


def check_single(folder: Path, name: str) -> None:
    """Raise CheckpointError for `name_1` and so on beside the part `name`."""
    if more := sorted(path.name for path in folder.glob(f"{name}_[0-9]*")):
        raise CheckpointError(
            f"{folder} holds {name} and {shown(', '.join(more), 80)}; one is served, name it with {name}=..."
        )


def warn_unfiltered(model: object) -> None:
    """Say once that a safety checker, which a model asks for, does not run."""
    warnings.warn(
        f"{shown(model)} asks for a safety checker, which is not run here: pictures are not filtered",
        TwigWarning,
        stacklevel=4,
    )
