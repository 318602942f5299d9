"""What a checkpoint's files say before any weights are read: its layout, its parts, and where each of them lies."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, SchedulerMixin

from ..api.errors import CheckpointError, TwigWarning
from ..api.reading import shown
from . import configs, layout
from .bank import FILE as BANK_FILE
from .layout import Source
from .parts import Vae

EMBEDDED = Path(__file__).parents[1] / "assets" / "model"
"""Folder of the model that comes with the package."""

_XL_PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline", "StableDiffusionXLImg2ImgPipeline")

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    *_XL_PIPELINES,
)
"""Pipelines of diffusers whose folders are read."""

REQUIRED = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
XL_REQUIRED = (*REQUIRED, "tokenizer_2", "text_encoder_2")
_OPTIONAL = ("controlnet", "segmenter")
_WITHOUT_WEIGHTS = ("tokenizer", "tokenizer_2", "scheduler")
INDEX_KEYS = frozenset({
    "_class_name", "_diffusers_version", "_name_or_path", "safety_checker", "feature_extractor", "image_encoder",
    "requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "requires_aesthetics_score",
})  # fmt: skip
"""What else an index says: parts that check or describe pictures, and settings."""
_FILES = ("*.json", "*.txt", "*.safetensors")
_MODEL_FILES = (
    "model_index.json",
    "calibration.json",
    BANK_FILE,
    *(f"{p}/{f}" for p in XL_REQUIRED + _OPTIONAL for f in _FILES),
)


@dataclass(frozen=True)
class Outline:
    """Where the parts of a checkpoint are: in folders, or in memory.

    pipeline: class of diffusers' pipeline that they make up. folders, given: each part that is read from the disk, and
    each that was handed over in memory, by name. settings: of the pipeline. calibration, bank: files of the model's
    limits and shapes. variant: of weights, taken where a part has it. sources: what was named, by the name of the
    keyword: a folder by its full path, of what is in memory what it is.
    """

    pipeline: str
    folders: Mapping[str, Path]
    given: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: Path | None = None
    bank: Path | None = None
    variant: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def xl(self) -> bool:
        """Whether it is in SDXL's layout."""
        return self.pipeline in _XL_PIPELINES

    @property
    def zero_empty(self) -> bool:
        """Whether zeros stand for an empty negative prompt."""
        return self.xl and bool(self.settings.get("force_zeros_for_empty_prompt", True))


def outlined(
    source: Source | None = None,
    *,
    controlnet: Source | None = None,
    segmenter: Source | None = None,
    vae: Source | Vae | None = None,
    scheduler: SchedulerMixin | None = None,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Outline:
    """Find a checkpoint's parts; arguments as of `checkpoint.load`. Raises CheckpointError for a layout not served."""
    folder = layout.locate(EMBEDDED if source is None else source, _MODEL_FILES, revision, subfolder)
    index = layout.read_json(folder / "model_index.json")
    pipeline = _pipeline(folder, index)
    _check_index(folder, index)
    if index.get("requires_safety_checker") or index.get("safety_checker") not in (None, [None, None]):
        _warn_unfiltered(folder)
    elsewhere = {"controlnet": controlnet, "segmenter": segmenter, "vae": vae if isinstance(vae, Source) else None}
    given = _present(vae=None if isinstance(vae, Source) else vae, scheduler=scheduler)
    calibration, bank = folder / "calibration.json", folder / BANK_FILE
    return Outline(
        pipeline,
        _checked(_folders(folder, pipeline, _present(**elsewhere), given), variant),
        given,
        index,
        calibration if os.path.lexists(calibration) else None,
        bank if os.path.lexists(bank) else None,
        variant,
        _named(source=source, **elsewhere)
        | {name: _in_memory(part) for name, part in given.items()}
        | _present(variant=variant, revision=revision, subfolder=subfolder),
    )


def outlined_pipeline(
    pipeline: DiffusionPipeline, *, controlnet: Source | None = None, segmenter: Source | None = None
) -> Outline:
    """A pipeline's parts as they are in memory, and what takes their places; a pipeline has no segmenter.

    Raises CheckpointError for a pipeline that is not served.
    """
    name = type(pipeline).__name__
    if name not in PIPELINES:
        raise CheckpointError(f"a {shown(name)} is not served; the pipelines served are {', '.join(PIPELINES)}")
    given = _present(**pipeline.components)
    for part in given.keys() - {*XL_REQUIRED, "controlnet"} - INDEX_KEYS:
        raise CheckpointError(f"the {name} has a part {shown(part, 80)}, which is not served")
    if "safety_checker" in given:
        _warn_unfiltered(f"the {name}")
    elsewhere = _present(controlnet=controlnet, segmenter=segmenter)
    return Outline(
        name,
        _checked({part: layout.locate(source, _FILES) for part, source in elsewhere.items()}, None),
        {part: value for part, value in given.items() if part not in INDEX_KEYS | elsewhere.keys()},
        dict(pipeline.config),
        sources=_named(**elsewhere) | {"source": _in_memory(pipeline)},
    )


def _present(**parts: Any) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if part is not None}


def _named(**sources: Source | None) -> dict[str, str]:
    """What was named, a folder by its full path, so that a replay finds it from anywhere."""
    named = _present(**sources)
    return {part: str(Path(name).resolve()) if Path(name).exists() else str(name) for part, name in named.items()}


def _in_memory(part: object) -> str:
    """How a record names what was handed over in memory: it lies nowhere, and only its hash says what it was."""
    return f"{type(part).__name__} in memory"


def _pipeline(folder: Path, index: Mapping[str, Any]) -> str:
    """Name of the pipeline that an index is of, if it is served."""
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(f"{folder} holds a {pipeline}; the layouts served are those of {', '.join(PIPELINES)}")
    if index.get("requires_aesthetics_score"):
        raise CheckpointError(f"{folder} asks for an aesthetics score, as SDXL's refiner does; give the base model")
    return str(pipeline)


def _folders(folder: Path, pipeline: str, elsewhere: Mapping[str, Source], given: Mapping[str, Any]) -> dict[str, Path]:
    """Folder of each part, by name: of the model's own, and of what lies `elsewhere`."""
    needed = XL_REQUIRED if pipeline in _XL_PIPELINES else REQUIRED
    own = [name for name in needed if name not in (*elsewhere, *given)]
    if missing := [name for name in own if not (folder / name).is_dir()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}; a {pipeline} needs {', '.join(needed)}")
    folders = {name: folder / name for name in own}
    for name in _OPTIONAL:
        if name not in elsewhere and (folder / name).is_dir():
            folders[name] = folder / name
            _check_single(folder, name)
    return folders | {name: layout.locate(source, _FILES) for name, source in elsewhere.items()}


def _checked(folders: dict[str, Path], variant: str | None) -> dict[str, Path]:
    """Find a part that cannot be read before any other is loaded, and a variant that no part has."""
    found = set()
    for name, part in folders.items():
        layout.check_files(part)
        if name not in _WITHOUT_WEIGHTS:
            found.add(layout.weights(part, variant)[0])
    if variant is not None and variant not in found:
        raise CheckpointError(f"no part has weights of the variant={variant!r}; leave it out")
    return folders


def _check_index(folder: Path, index: dict[str, Any]) -> None:
    """Every part that the index names must be one that is read, or one that a picture does not depend on."""
    configs.check_code(folder, index)
    for name, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        if name in XL_REQUIRED + _OPTIONAL:
            if library is not None and library not in ("diffusers", "transformers"):
                raise CheckpointError(
                    f"{folder} takes its {name} from {shown(repr(value), 80)}, code that is not run here"
                )
        elif name not in INDEX_KEYS and value not in (None, [None, None]):
            raise CheckpointError(
                f"{folder} names a part {shown(name, 80)}, {shown(repr(value), 80)}, which is not served; the parts "
                f"served are {', '.join(XL_REQUIRED + _OPTIONAL)}"
            )
    if isinstance(control := index.get("controlnet"), list) and "MultiControlNetModel" in control:
        raise CheckpointError(f"{folder} holds several ControlNets; give one, with controlnet=...")


def _check_single(folder: Path, name: str) -> None:
    """Raise CheckpointError for `name_1` and so on beside the part `name`, which diffusers would run together."""
    if more := sorted(path.name for path in folder.glob(f"{name}_[0-9]*")):
        raise CheckpointError(
            f"{folder} holds {name} and {shown(', '.join(more), 80)}; one is served, name it with {name}=..."
        )


def _warn_unfiltered(model: object) -> None:
    warnings.warn(
        f"{shown(model)} asks for a safety checker, which is not run here: pictures are not filtered",
        TwigWarning,
        stacklevel=4,
    )
