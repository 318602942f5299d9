"""What a checkpoint's files say before any weights are read: its layout, its parts, and where each of them lies."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny, DiffusionPipeline, MultiControlNetModel, SchedulerMixin

from ..api.choices import Prediction
from ..api.errors import CheckpointError
from ..api.reading import shown
from . import controls, layout, single_file
from .bank import FILE as BANK_FILE
from .components import EMBEDDED
from .file_parts import FilePart
from .layout import Source
from .lora import Fused, named_adapters, named_files
from .model_index import (
    INDEX_KEYS,
    OPTIONAL,
    PIPELINES,
    REQUIRED,
    WITHOUT_WEIGHTS,
    XL_PIPELINES,
    XL_REQUIRED,
    check_index,
    check_single,
    check_whole,
    pipeline_of,
    warn_unfiltered,
)
from .parts import Vae
from .textual_inversion import Inversions, named_embeddings

_FILES = ("*.json", "*.txt", "*.safetensors")
_MODEL_FILES = (
    "model_index.json",
    "calibration.json",
    BANK_FILE,
    *(f"{p}/{f}" for p in (*XL_REQUIRED, *OPTIONAL, f"{controls.PART}[0-9]") for f in _FILES),
)


@dataclass(frozen=True)
class Outline:
    """Where the parts of a checkpoint are: in folders, or in memory.

    pipeline: class of diffusers' pipeline that they make up. folders, given, files: each part that is read from a
    folder, each that is in memory, and each network that a single file holds, by name. settings: of the pipeline.
    calibration, bank: files of the model's limits and shapes. variant: of weights, taken where a part has it.
    prediction: type that takes the place of the schedule's own. sources: what was named, by the name of the keyword: a
    folder or file by its full path, of what is in memory what it is. embeddings: files of textual inversions, each with
    the word it was given, if any. fused: files of adapters that become a part of the weights, each with its own weight;
    adapters: files of those that requests may name.
    """

    pipeline: str
    folders: Mapping[str, Path]
    given: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: Path | None = None
    bank: Path | None = None
    variant: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FilePart] = field(default_factory=dict)
    prediction: str | None = None
    embeddings: tuple[tuple[Path, str | None], ...] = ()
    fused: tuple[tuple[Path, float], ...] = ()
    adapters: Mapping[str, Path] = field(default_factory=dict)

    @property
    def xl(self) -> bool:
        """Whether it is in SDXL's layout."""
        return self.pipeline in XL_PIPELINES

    @property
    def zero_empty(self) -> bool:
        """Whether zeros stand for an empty negative prompt."""
        return self.xl and bool(self.settings.get("force_zeros_for_empty_prompt", True))


def outlined(
    source: Source | None = None,
    *,
    controlnet: controls.Chosen | None = None,
    segmenter: Source | None = None,
    vae: Source | Vae | None = None,
    preview_vae: Source | AutoencoderTiny | None = None,
    scheduler: SchedulerMixin | None = None,
    embeddings: Inversions = (),
    lora: Fused = (),
    adapters: Mapping[str, Source] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    prediction_type: str | None = None,
) -> Outline:
    """Find a checkpoint's parts; arguments as of `checkpoint.load`. Raises CheckpointError for a layout not served."""
    either = _present(vae=vae, preview_vae=preview_vae)
    first, further = controls.told_apart(controlnet)
    named = _present(controlnet=first, segmenter=segmenter, **further)
    named |= {name: part for name, part in either.items() if isinstance(part, Source)}
    given = _present(scheduler=scheduler, **{name: part for name, part in either.items() if name not in named})
    _check_prediction(prediction_type)
    file = single_file.named(source)
    if file is None:
        outline = _of_folder(source, named, given, variant, revision, subfolder)
    else:
        _check_alone(file, revision=revision, subfolder=subfolder)
        outline = _of_file(file, named, given, variant, prediction_type)
    said = _present(variant=variant, revision=revision, subfolder=subfolder, prediction_type=prediction_type)
    in_memory = {name: _in_memory(part) for name, part in given.items()}
    sources = _named(**_present(source=source), **named) | in_memory | said
    inversions = named_embeddings(embeddings)
    return replace(
        outline,
        sources=sources,
        prediction=prediction_type,
        embeddings=inversions,
        fused=named_files(lora),
        adapters=named_adapters(adapters or {}),
    )


def _of_folder(
    source: Source | None,
    named: Mapping[str, Source],
    given: Mapping[str, Any],
    variant: str | None,
    revision: str | None,
    subfolder: str | None,
) -> Outline:
    """A model in a folder, or in the hub; what was `named` beside it may be single files."""
    folder = layout.locate(EMBEDDED if source is None else source, _MODEL_FILES, revision, subfolder)
    check_whole(folder)
    index = layout.read_json(folder / "model_index.json")
    pipeline = pipeline_of(folder, index)
    check_index(folder, index)
    if index.get("requires_safety_checker") or index.get("safety_checker") not in (None, [None, None]):
        warn_unfiltered(folder)
    files = _files(named, pipeline in XL_PIPELINES)
    calibration, bank = folder / "calibration.json", folder / BANK_FILE
    return Outline(
        pipeline,
        _checked(_folders(folder, pipeline, _without(named, files), {**given, **files}), variant),
        given,
        index,
        calibration if os.path.lexists(calibration) else None,
        bank if os.path.lexists(bank) else None,
        variant,
        files=files,
    )


def _of_file(
    file: Path, named: Mapping[str, Source], given: Mapping[str, Any], variant: str | None, prediction: str | None
) -> Outline:
    """A model in a single file, whose tokenizers and schedule are known; it has neither limits nor shapes."""
    found = single_file.model(file, variant, prediction, own_vae="vae" not in {**named, **given})
    files = _files(named, found.xl)
    folders = {name: layout.locate(source, _FILES) for name, source in _without(named, files).items()}
    return Outline(
        XL_PIPELINES[0] if found.xl else PIPELINES[0],
        _checked(folders, None),
        {**found.given, **given},
        {"force_zeros_for_empty_prompt": True} if found.xl else {},
        variant=variant,
        files={**found.files, **files},
    )


def _files(named: Mapping[str, Source], xl: bool) -> dict[str, FilePart]:
    """Of the parts that were `named`, those that lie in single files. xl: whether they are for SDXL."""
    files = {name: file for name, source in named.items() if (file := single_file.named(source)) is not None}
    open_file: Mapping[str, Callable[[Path], FilePart]] = {
        "controlnet": single_file.controlnet,
        "vae": partial(single_file.autoencoder, xl=xl),
        "preview_vae": partial(single_file.autoencoder, xl=xl),
    }
    for name, file in files.items():
        if controls.kind_of(name) not in open_file:
            raise CheckpointError(f"{shown(file)} is a single file; a {name} is given as its folder")
    return {name: open_file[controls.kind_of(name)](file) for name, file in files.items()}


def _without(named: Mapping[str, Source], files: Mapping[str, Any]) -> dict[str, Source]:
    return {name: source for name, source in named.items() if name not in files}


def _check_alone(file: Path, **options: str | None) -> None:
    for name, value in _present(**options).items():
        raise CheckpointError(f"{shown(file)} is a file, and {name}={value!r} is of a folder or hub id; leave it out")


def _check_prediction(prediction: str | None) -> None:
    if prediction not in (None, *Prediction):
        raise CheckpointError(f"prediction_type={prediction!r} is not served; those served are {', '.join(Prediction)}")


def outlined_pipeline(
    pipeline: DiffusionPipeline,
    *,
    controlnet: controls.Chosen | None = None,
    segmenter: Source | None = None,
    preview_vae: Source | None = None,
) -> Outline:
    """A pipeline's parts as they are in memory, and what takes their places; a pipeline has no segmenter.

    Raises CheckpointError for a pipeline that is not served.
    """
    name = type(pipeline).__name__
    if name not in PIPELINES:
        raise CheckpointError(f"a {shown(name)} is not served; the pipelines served are {', '.join(PIPELINES)}")
    given = _present(**pipeline.components)
    if isinstance(several := given.get("controlnet"), MultiControlNetModel):
        given |= {
            f"{controls.PART}{number}" if number else "controlnet": net for number, net in enumerate(several.nets)
        }
    for part in {controls.kind_of(part) for part in given} - {*XL_REQUIRED, "controlnet"} - INDEX_KEYS:
        raise CheckpointError(f"the {name} has a part {shown(part, 80)}, which is not served")
    if "safety_checker" in given:
        warn_unfiltered(f"the {name}")
    first, further = controls.told_apart(controlnet)
    elsewhere = _present(controlnet=first, segmenter=segmenter, preview_vae=preview_vae, **further)
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


def _folders(folder: Path, pipeline: str, elsewhere: Mapping[str, Source], given: Mapping[str, Any]) -> dict[str, Path]:
    """Folder of each part, by name: of the model's own, and of what lies `elsewhere`."""
    needed = XL_REQUIRED if pipeline in XL_PIPELINES else REQUIRED
    own = [name for name in needed if name not in (*elsewhere, *given)]
    if missing := [name for name in own if not (folder / name).is_dir()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}; a {pipeline} needs {', '.join(needed)}")
    folders = {name: folder / name for name in own}
    for name in OPTIONAL:
        if name not in (*elsewhere, *given) and (folder / name).is_dir():
            folders[name] = folder / name
    if "segmenter" not in elsewhere:
        check_single(folder, "segmenter")
    folders |= {path.name: path for path in sorted(folder.glob(f"{controls.PART}[0-9]*")) if path.is_dir()}
    return folders | {name: layout.locate(source, _FILES) for name, source in elsewhere.items()}


def _checked(folders: dict[str, Path], variant: str | None) -> dict[str, Path]:
    """Find a part that cannot be read before any other is loaded, and a variant that no part has."""
    found = set()
    for name, part in folders.items():
        layout.check_files(part, name)
        if name not in WITHOUT_WEIGHTS:
            found.add(layout.weights(part, variant)[0])
    if variant is not None and variant not in found:
        there = sorted(filter(None, found))
        known = f"there is {', '.join(map(shown, there))}" if there else "leave it out"
        raise CheckpointError(f"no part has weights of the variant={variant!r}; {known}")
    return folders
