"""Which models are kept beside their compiled networks, and by what name: those in folders that nothing changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import models
from .api.errors import BackendError, TwigError
from .backends.networks import compiles_all, installed_source
from .backends.protocol import KeepsModels
from .models.components import EMBEDDED, Components
from .models.kept import can_be_kept, keep

if TYPE_CHECKING:
    from .models.layout import Source
    from .models.outline import Outline

_FOLDERS = ("controlnet", "segmenter", "vae", "preview_vae")
_WORDS = ("variant", "subfolder", "prediction_type")
_ROOT = Path(__file__).parents[1]
_CODE = (_ROOT / "engine" / "models", _ROOT / "engine" / "sampling", _ROOT / "kernels")


class NotKeptError(TwigError):
    """A model that is read whole each time."""


def keeper_of(options: Mapping[str, Any]) -> KeepsModels | None:
    """What keeps models for an engine of such options; None where PyTorch runs any of its networks."""
    if not compiles_all(options.get("backend", "torch")):
        return None
    try:
        source = options.get("artifacts") or installed_source()
    except BackendError:  # said when a network is asked for
        return None
    return source if isinstance(source, KeepsModels) else None


def names_of(source: Source | None, named: Mapping[str, Any], dtype: torch.dtype) -> dict[str, str] | None:
    """What a kept model is known by: its folders and what lies in them, and all that reads them; None for others.

    The weights' contents are compared when it is read.
    """
    given = {name: value for name, value in named.items() if value not in (None, (), {})}
    folders = {"source": EMBEDDED if source is None else source}
    folders |= {name: given.pop(name) for name in _FOLDERS if name in given}
    words = {name: given.pop(name) for name in _WORDS if name in given}
    if given or not all(map(_is_folder, folders.values())):
        return None
    places = {name: Path(place).expanduser().resolve() for name, place in folders.items()}
    return {
        "folders": json.dumps({name: str(folders[name]) for name in folders}, sort_keys=True),
        "listing": _hash(*(line for place in places.values() for line in _listing(place))),
        "words": json.dumps(words, sort_keys=True),
        "dtype": str(dtype),
        "code": _hash(*(file.read_text() for folder in _CODE for file in sorted(folder.glob("*.py")))),
    }


def _is_folder(place: Any) -> bool:
    return isinstance(place, str | Path) and Path(place).expanduser().is_dir()


def keep_model(components: Components, outline: Outline, folder: Path) -> None:
    """Write what was read of a model into `folder`. Raises NotKeptError for one that is not kept."""
    if not can_be_kept(components, outline):
        raise NotKeptError("PyTorch makes more of this model's inputs than is kept")
    files = {
        name: [file.name for file in models.layout.digested(part, outline.variant)]
        for name, part in outline.folders.items()
    }
    keep(components, outline, files, folder)


def _listing(folder: Path) -> list[str]:
    """Names and sizes of the files of a model's folder, and its index."""
    files = [path for path in sorted([*folder.glob("*"), *folder.glob("*/*")]) if path.is_file()]
    index = folder / "model_index.json"
    said = [index.read_text()] if index.is_file() else []
    return [str(folder), *(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files), *said]


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
