"""How checkpoints lie on disk: diffusers and transformers folders, their configurations and safetensors."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import CLIPPreTrainedModel
from transformers.utils import logging as transformers_logging

from ..api.errors import CheckpointError
from ..api.reading import MAX_TENSORS, check_regular, open_regular, read_object, shown
from . import configs, folder_network
from .tensor_files import check_names, check_tensors

Source = str | Path

BROKEN = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What the libraries raise at a part whose files contradict each other, or say what is of another type."""

_LOGGINGS = (diffusers_logging, transformers_logging)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
_MAX_CONFIG = 2**26
_STEMS = ("diffusion_pytorch_model", "model")
_SHARD = r"-\d{5}-of-\d{5}"
_WEIGHTS = re.compile(
    rf"(?P<stem>[a-z_]+?)(\.(?P<variant>[\w-]+?)({_SHARD})?|{_SHARD}(\.(?P<after>[\w-]+))?)?\.safetensors"
)
"""A variant stands before a shard's number, or, as diffusers once wrote it, after."""


def locate(source: Source, hub_files: Sequence[str], revision: str | None = None, subfolder: str | None = None) -> Path:
    """Return the folder that `source` names; a hub id `owner/name` is downloaded, `hub_files` only.

    revision: branch, tag or commit of the hub id. subfolder: where in the folder or repository it lies. Raises
    CheckpointError where there is no such folder or repository.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{source} is a folder, and revision={revision!r} is of a hub id; leave it out")
        return _within(path, subfolder)
    if path.exists():
        raise CheckpointError(_single_file(path))
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        wanted = [f"{subfolder}/{name}" for name in hub_files] if subfolder else hub_files
        return _within(_download(source, wanted, revision), subfolder)
    raise CheckpointError(
        f"there is no folder or file {source}; give a diffusers folder, a .safetensors file, or a hub id of the form "
        "owner/name"
    )


def _within(folder: Path, subfolder: str | None) -> Path:
    if not subfolder:
        return folder
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise CheckpointError(f"subfolder={subfolder!r} leads out of {folder}; name a folder in it")
    if not (folder / subfolder).is_dir():
        raise CheckpointError(f"there is no folder {subfolder} in {folder}")
    return folder / subfolder


def _single_file(path: Path) -> str:
    if path.suffix in _PICKLES:
        return f"{path} is a pickle, which can run code when it is loaded; give a folder or a file of safetensors"
    if path.suffix == ".safetensors":
        return f"{path} is a single file; give a folder in its place"
    return f"{path} is a file, and no .safetensors; give one, or a diffusers folder"


def _download(name: str, files: Sequence[str], revision: str | None) -> Path:
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(files), ignore_patterns=["*non_ema*"])
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        problem = f"there is no folder {name}, and the hub gave no such model: {shown(error, 600)}"
        raise CheckpointError(problem) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration, whose numbers need not be finite. Raises CheckpointError where it is none."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{shown(path.parent)} has no {shown(path.name)}{_neighbours(path.parent)}")
    return read_object(path, constants=True)


def _neighbours(folder: Path) -> str:
    if not folder.is_dir():
        return ": the folder is missing"
    names = sorted(shown(p.name, 80) for p in folder.iterdir())
    return f"; it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "; it is empty"


def weights(part: Path, wanted: str | None = None) -> tuple[str | None, list[Path]]:
    """Return the variant (None, or such as 'fp16') and the safetensors files that hold the weights of `part`.

    The variant `wanted` where the part has it; else full precision goes before a variant. Raises CheckpointError for
    pickles, or where there is nothing, or a file is corrupt.
    """
    found: dict[str | None, list[Path]] = {}
    for file in sorted(part.glob("*.safetensors")):
        match = _WEIGHTS.fullmatch(file.name)
        if match and match["stem"] in _STEMS:
            found.setdefault(match["variant"] or match["after"], []).append(file)
    found.pop("non_ema", None)
    if not found:
        raise CheckpointError(_without_weights(part))
    variant = wanted if wanted in found else min(found, key=lambda name: name or "")
    _check_shards(part, found[variant], variant)
    check_tensors(found[variant])
    return variant, found[variant]


def _check_shards(part: Path, files: Sequence[Path], variant: str | None) -> None:
    """An index of shards may name the safetensors files beside it and nothing else, and must name them all.

    The libraries open whatever it names: another folder's file, or a pickle. Nothing but what is hashed is loaded.
    """
    for index in sorted(part.glob("*.safetensors.index*.json")):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{shown(index)} has no weight_map from tensors to files")
        named = set(shards.values())
        if strange := sorted(name for name in named if "/" in name or not _WEIGHTS.fullmatch(name)):
            raise CheckpointError(
                f"{shown(index)} names {shown(repr(strange[0]), 80)}; shards are safetensors files beside it"
            )
        own = _index_variant(index) == variant
        if own and (missing := sorted(named ^ {file.name for file in files})):
            raise CheckpointError(
                f"{shown(index)} and the weights beside it differ in {shown(missing[0], 80)}; each file must be a "
                "shard, and each shard there"
            )
    numbered = [file.name for file in files if "-of-" in file.name]
    if numbered and not any(_index_variant(index) == variant for index in part.glob("*.safetensors.index*.json")):
        raise CheckpointError(f"{shown(part)} holds {numbered[0]}, a shard, and no index of its shards")


def _index_variant(index: Path) -> str | None:
    """Variant of the weights that an index is of; both libraries' ways of writing it."""
    match = re.fullmatch(r"[a-z_]+(\.(?P<before>[\w-]+))?\.safetensors\.index(\.(?P<after>[\w-]+))?\.json", index.name)
    return None if match is None else match["before"] or match["after"]


def check_files(part: Path, name: str) -> None:
    """Raise CheckpointError for a file of `part` that the libraries would hang at or follow elsewhere.

    name: of the part. A folder that is a whole model, or an adapter, in a part's place is said to be one.
    """
    if os.path.lexists(part / "model_index.json"):
        inner = f"name its part, {name}={shown(part / name)!r}" if (part / name).is_dir() else f"it holds no {name}"
        raise CheckpointError(f"{shown(part)} is a whole model, not a {name}; {inner}")
    check_no_adapter(part, name)
    for path in sorted(part.iterdir()):
        if not path.is_dir():
            check_regular(
                path, MAX_TENSORS if path.suffix == ".safetensors" or path.suffix in _PICKLES else _MAX_CONFIG
            )


def check_no_adapter(folder: Path, name: str) -> None:
    """Raise CheckpointError for the folder of an adapter in the place of a model or of its part `name`."""
    if (folder / "pytorch_lora_weights.safetensors").exists():
        raise CheckpointError(
            f"{shown(folder)} holds a LoRA, not a {name}; give the pytorch_lora_weights.safetensors in it with lora=..."
        )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{shown(folder)} holds an adapter_config.json, which names another model's weights; give a {name} that "
            "the adapter is merged into"
        )


def _without_weights(part: Path) -> str:
    pickles = sorted(p.name for p in part.glob("*") if p.suffix in _PICKLES)
    if pickles:
        return (
            f"{part} holds pickled weights ({', '.join(pickles)}), which can run code when they are loaded; "
            "save them as safetensors first"
        )
    return f"{part} has no safetensors weights{_neighbours(part)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars, and tables of keys as files name them, off the user's terminal."""
    bars, verbosities = transformers_logging.is_progress_bar_enabled(), [each.get_verbosity() for each in _LOGGINGS]
    transformers_logging.disable_progress_bar()
    for logging in _LOGGINGS:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        for logging, verbosity in zip(_LOGGINGS, verbosities, strict=True):
            logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def module_config(cls: Any, part: Path) -> dict[str, Any]:
    """Configuration of the network of class `cls` in `part`; raises CheckpointError for one that is not served."""
    config = read_json(part / "config.json")
    named = class_named(config) or cls.__name__
    if config.get("_class_name", cls.__name__) != cls.__name__ or (named != cls.__name__ and not _is_text(cls)):
        raise CheckpointError(f"{shown(part)} holds a {shown(named)}, which is not served as a {cls.__name__}")
    configs.check_module(cls, part, {**config, "_class_name": named})
    return config


def class_named(config: dict[str, Any]) -> str | None:
    """Class of the network that a configuration is of, as diffusers or transformers writes it."""
    architectures = config.get("architectures")
    listed = architectures[0] if isinstance(architectures, list) and architectures else None
    named = config.get("_class_name", listed)
    return named if isinstance(named, str) else None


def _is_text(cls: Any) -> bool:
    """Whether networks of `cls` are read out of larger ones too: a whole CLIP holds a text encoder."""
    return issubclass(cls, CLIPPreTrainedModel)


def sketched_module(cls: Any, part: Path) -> Any:
    """A network as its configuration says, on the device "meta": its tensors have shapes and hold nothing."""
    return empty_module(cls, module_config(cls, part), part)


def empty_module(cls: Any, config: dict[str, Any], part: Path | str) -> Any:
    """A network of a configuration, on the device "meta". part: where it is from, for messages."""
    try:
        with _quiet(), torch.device("meta"):
            transformer = issubclass(cls, transformers.PreTrainedModel)
            return cls(cls.config_class.from_dict(config)) if transformer else cls.from_config(config)
    except BROKEN as error:
        raise CheckpointError(f"{shown(part)} cannot be loaded as a {cls.__name__}: {shown(error, 600)}") from error


def load_module(
    cls: Any, sketch: Any, part: Path, dtype: torch.dtype, device: torch.device | str, wanted: str | None = None
) -> Any:
    """Load a network of diffusers or transformers, frozen; a tensor its file lacks is an error, never a random one.

    sketch: what `sketched_module` made of it; a network of diffusers it is from now on. wanted: the variant of the
    weights that is taken if there.
    """
    variant, files = weights(part, wanted)
    if not issubclass(cls, transformers.PreTrainedModel):
        return folder_network.fill(sketch, part, files, dtype, device)
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, "dtype": dtype}
    try:
        with _quiet():
            module, info = cls.from_pretrained(part, variant=variant, **options)
    except BROKEN as error:
        raise CheckpointError(f"{shown(part)} cannot be loaded as a {cls.__name__}: {shown(error, 600)}") from error
    check_names(part, files, module, info)
    return module.to(device).eval().requires_grad_(False)


def digest(part: Path, wanted: str | None = None) -> str:
    """SHA-256, in hex, over names and contents of the configuration and weight files of `part`.

    wanted: the variant of the weights that is taken if there.
    """
    total = hashlib.sha256()
    for file in digested(part, wanted):
        with open_regular(file, MAX_TENSORS) as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def digested(part: Path, wanted: str | None = None) -> list[Path]:
    """The files that `digest` is of, in their order."""
    files = [p for p in part.iterdir() if p.suffix in {".json", ".txt"}]
    if any(part.glob("*.safetensors")):
        files += weights(part, wanted)[1]
    return sorted(files)
