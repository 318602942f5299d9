"""The file of a registry: safetensors whose header names the works. What is read back is checked tensor by tensor."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..api.reading import MAX_TENSORS, check_regular, parse_json, reading, shown
from ..api.writing import write_whole
from .descriptors import WIDTH

_FORMAT = "twig-registry-1"
_PICTURE = "picture."


@dataclass(frozen=True)
class Work:
    """A registered work: its id, the name of its file, the SHA-256 of its pixels and when it was added.

    own: by measure, what an exact copy of it scores at least, `self_scores`; empty where it was added before these were
    kept.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=128)]  # counted in the pattern it takes 12 MiB
    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    added: str
    own: Mapping[str, FiniteFloat] = field(default_factory=dict, hash=False)


class Content(NamedTuple):
    """What the file holds, as `Registry` has it (K works)."""

    autoencoder: str
    works: tuple[Work, ...]
    descriptors: Tensor
    latents: Tensor
    pictures: Mapping[str, Tensor]


_WORKS = TypeAdapter(tuple[Work, ...])


def read(path: Path | str) -> tuple[Content, str | None]:
    """Read `path`: what it holds, and the version that it claims, None in files from before it was written.

    Raises ForeignFileError for what is no registry, or one whose parts contradict each other.
    """
    with reading(path, "no registry of Twig"):
        check_regular(path, MAX_TENSORS)
        header, tensors = _opened(path)
        parse_json(header["works"], path)
        works = _WORKS.validate_json(header["works"])
        pictures = {name.removeprefix(_PICTURE): t for name, t in tensors.items() if name.startswith(_PICTURE)}
        found = Content(header["autoencoder"], works, tensors["descriptors"], tensors["latents"], pictures)
        _check(found)
        return found, header.get("version")


def write(path: Path | str, content: Content, version: str) -> None:
    """Write `path`, which claims to be `version`, whole or not at all, readable by its owner alone."""
    tensors = {"descriptors": content.descriptors.contiguous(), "latents": content.latents.contiguous()}
    tensors |= {f"{_PICTURE}{id}": pixels.contiguous() for id, pixels in content.pictures.items()}
    works = json.dumps([asdict(work) for work in content.works])
    header = {"format": _FORMAT, "autoencoder": content.autoencoder, "works": works, "version": version}
    write_whole(Path(path), save(tensors, header), private=True)


def _opened(path: Path | str) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"its format is {shown(repr(header.get('format')))}, expected {_FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    for name, found in (("autoencoder", header), ("works", header), ("descriptors", tensors), ("latents", tensors)):
        if name not in found:
            raise ValueError(f"it holds no {name}")
    return header, tensors


def _check(content: Content) -> None:
    """Raise ValueError unless the tensors are what those of the works must be."""
    count, ids = len(content.works), [work.id for work in content.works]
    if len(set(ids)) != count:
        raise ValueError(f"work {max(ids, key=ids.count)!r} is named twice")
    if not count == len(content.descriptors) == len(content.latents):
        raise ValueError(f"it names {count} works and holds others")
    if unknown := sorted(content.pictures.keys() - set(ids)):
        raise ValueError(f"it holds the picture of a work {shown(repr(unknown[0]))}, which it does not name")
    if count:
        _check_tensor("descriptors", content.descriptors, torch.float32, (count, WIDTH))
        _check_tensor("latents", content.latents, torch.float32, (count, None, None, None))
    for id, pixels in content.pictures.items():
        _check_tensor(f"the picture of {id}", pixels, torch.uint8, (3, None, None))


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int | None]) -> None:
    """Raise ValueError unless `tensor` is finite, of `dtype` and of `shape`, None standing for any side."""
    fits = len(shape) == tensor.ndim and all(
        n == wanted or (wanted is None and n) for wanted, n in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype != dtype or not fits:
        sides = " x ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"{name} must be {dtype} of {sides}, got {tensor.dtype} of {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~tensor.isfinite()).sum())} numbers that are not")
