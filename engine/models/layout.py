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
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from ..api.errors import CheckpointError
from ..api.reading import read_object, shown

Source = str | Path

BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError)
"""What the libraries raise at a part whose files contradict each other."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
_STEMS = ("diffusion_pytorch_model", "model")
_WEIGHTS = re.compile(r"(?P<stem>[a-z_]+?)(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?\.safetensors")


def locate(source: Source, hub_files: Sequence[str]) -> Path:
    """Return the folder that `source` names; a hub id `owner/name` is downloaded, `hub_files` only.

    Raises CheckpointError where there is no such folder or repository.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(_single_file(path))
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _download(source, hub_files)
    raise CheckpointError(f"there is no folder {source}; give a diffusers folder, or a hub id of the form owner/name")


def _single_file(path: Path) -> str:
    if path.suffix in _PICKLES:
        return f"{path} is a pickle, which can run code when it is loaded; give a diffusers folder with safetensors"
    if path.suffix == ".safetensors":
        return (
            f"{path} is a single file; turn it into a folder with diffusers first: "
            f"StableDiffusionPipeline.from_single_file('{path.name}').save_pretrained('{path.stem}')"
        )
    return f"{path} is a file; give a diffusers folder"


def _download(name: str, files: Sequence[str]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), ignore_patterns=["*non_ema*"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"there is no folder {name}, and the hub gave no such model: {error}") from error


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


def weights(part: Path) -> tuple[str | None, list[Path]]:
    """Return the variant (None, or such as 'fp16') and the safetensors files that hold the weights of `part`.

    Full precision goes before a variant. Raises CheckpointError for pickles, or where there is nothing, or a file
    is corrupt.
    """
    found: dict[str | None, list[Path]] = {}
    for file in sorted(part.glob("*.safetensors")):
        match = _WEIGHTS.fullmatch(file.name)
        if match and match["stem"] in _STEMS:
            found.setdefault(match["variant"], []).append(file)
    found.pop("non_ema", None)
    if not found:
        raise CheckpointError(_without_weights(part))
    variant = min(found, key=lambda name: name or "")
    for file in found[variant]:
        _check_safetensors(file)
    return variant, found[variant]


def _without_weights(part: Path) -> str:
    pickles = sorted(p.name for p in part.glob("*") if p.suffix in _PICKLES)
    if pickles:
        return (
            f"{part} holds pickled weights ({', '.join(pickles)}), which can run code when they are loaded; "
            "save them as safetensors first"
        )
    return f"{part} has no safetensors weights{_neighbours(part)}"


def _check_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is corrupt or cut short: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars, and remarks on keys they ignore, off the user's terminal."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def load_module(cls: Any, part: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Load a network of diffusers or transformers, frozen; a tensor its file lacks is an error, never a random one."""
    named = read_json(part / "config.json").get("_class_name", cls.__name__)
    if named != cls.__name__:
        raise CheckpointError(f"{part} holds a {named}, which is not served as a {cls.__name__}")
    variant, _ = weights(part)
    dtype_name = "dtype" if issubclass(cls, transformers.PreTrainedModel) else "torch_dtype"
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, dtype_name: dtype}
    try:
        with _quiet():
            module, info = cls.from_pretrained(part, variant=variant, **options)
    except BROKEN as error:
        raise CheckpointError(f"{part} cannot be loaded as a {cls.__name__}: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{part} lacks {len(missing)} tensors of a {cls.__name__}, among them {missing[0]}")
    return module.to(device).eval().requires_grad_(False)


def digest(part: Path) -> str:
    """SHA-256, in hex, over names and contents of the configuration and weight files of `part`."""
    files = [p for p in part.iterdir() if p.suffix in {".json", ".txt"}]
    if any(part.glob("*.safetensors")):
        files += weights(part)[1]
    total = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
