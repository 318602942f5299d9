"""The trained weights of shift-tolerant LPIPS that the wheel of `stlpips-pytorch` holds, as safetensors of ours.

The wheel's own code is not run: it wants packages that nothing here needs. Its file of weights is a pickle; it is
opened where its digest is the one known of the release, by PyTorch's reader of tensors alone, once.
"""

import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..api.errors import CheckpointError, TwigError
from ..api.reading import MAX_TENSORS, open_regular, shown
from ..api.writing import write_whole
from .perceptual import Lpips

PACKAGE = "stlpips-pytorch"
_FILE = "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
_RELEASED = "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"
CONTENT = "a855ac8723599a0d2769585b531a344bd27df8fc72e392a3a5bf0b36fd556d64"
"""Digest of the weights by name and value, wherever they lie: what manifests name them by."""


def cached() -> Path:
    """Where the converted weights lie: in a folder of the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "twig" / "metrics" / "st_lpips.safetensors"


def weights() -> dict[str, Tensor]:
    """The weights by their published names; converted into the cache where they are not there yet, or are others.

    Raises TwigError where the wheel is not installed, CheckpointError where it holds another file than the release.
    """
    path = cached()
    try:
        found = load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError):
        found = {}
    if digest(found) != CONTENT:
        found = _converted(_in_wheel())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(found))
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _in_wheel() -> Path:
    try:
        return Path(str(distribution(PACKAGE).locate_file(_FILE)))
    except PackageNotFoundError as error:
        raise TwigError(
            "the measure lpips needs trained weights: pip install 'twig-engine[lpips]', or name a file of them, "
            "lpips=FILE"
        ) from error


def _converted(path: Path) -> dict[str, Tensor]:
    with open_regular(path, MAX_TENSORS) as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != _RELEASED:
            raise CheckpointError(f"{shown(path)} is not the file of {PACKAGE} 0.0.2; install that release")
        stream.seek(0)
        held = torch.load(stream, map_location="cpu", weights_only=True)
    return {name: held[name].contiguous() for name in Lpips.names(tolerant=True).values()}
