"""Protected works, kept as descriptors and latents in one file of their owner's, never as pixels unless asked.

The latents are those of one model's autoencoder: whoever has the model and the file can decode them, which is why the
file can be read and written by its owner alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import scipy
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor

from ..api.errors import CheckpointError, InvalidRequestError
from ..api.pixels import load_picture
from ..api.reading import shown
from ..api.writing import sweep
from ..models.components import Components
from ..models.pictures import to_pixels
from ..records.manifest import pixel_hash
from .descriptors import descriptors, mirrored
from .own_scores import self_scores
from .registry_file import Content, Work, read, write

_CHUNK = 16
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


class Nearest(NamedTuple):
    """The works nearest to each of B pictures: positions and similarity of descriptors (B, k), closest first."""

    positions: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class Registry:
    """An index of works, in the order they were added (K works).

    autoencoder: SHA-256 of the autoencoder that encoded them. descriptors (K, D); latents (K, C, h, w), scaled as a
    UNet takes them. pictures: pixels (3, H, W) uint8 by id, of works whose pictures are kept.
    """

    autoencoder: str
    works: tuple[Work, ...] = ()
    descriptors: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    latents: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, 0))
    pictures: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of works."""
        return len(self.works)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read `path`.

        Raises ForeignFileError, a CheckpointError, for a file that is no registry, or holds other works than it claims.
        """
        content, claimed = read(path)
        found = cls(*content)
        if claimed not in (None, found.version):
            raise CheckpointError(
                f"{shown(path)} claims to be registry {shown(claimed)!r} and holds {found.version}: it was altered; "
                "add the works again, or take back the file as it was"
            )
        return found

    def save(self, path: Path | str) -> None:
        """Write `path` whole or not at all, readable by its owner alone."""
        sweep(Path(path).parent)
        content = Content(self.autoencoder, self.works, self.descriptors, self.latents, self.pictures)
        write(path, content, self.version)

    @cached_property
    def version(self) -> str:
        """A digest of 128 bits of what is registered, to name in manifests: works, descriptors, latents, pictures.

        When a work was added does not count.
        """
        tensors = {"descriptors": self.descriptors, "latents": self.latents, **self.pictures}
        works = [(work.id, work.name, work.sha256, *sorted(work.own.items())) for work in self.works]
        kept = [(name, pixel_hash(tensors[name].contiguous().numpy())) for name in sorted(tensors)]
        return hashlib.sha256(json.dumps([self.autoencoder, works, kept]).encode()).hexdigest()[:32]

    def check(self, components: Components) -> None:
        """Raise CheckpointError unless the latents are those of this model's autoencoder."""
        channels = components.vae.config.latent_channels
        if len(self) and self.latents.shape[1] != channels:
            raise CheckpointError(
                f"the registry's latents have {self.latents.shape[1]} channels, this model's have {channels}"
            )
        if self.autoencoder != components.hashes["vae"]:
            raise CheckpointError(
                f"the registry was made with an autoencoder of SHA-256 {self.autoencoder[:16]}, this model's has "
                f"{components.hashes['vae'][:16]}; add the works again with this model"
            )

    def nearest(self, pictures: Tensor, count: int = 1) -> Nearest:
        """Find the `count` works nearest to pictures (B, 3, H, W) in [0, 1], which are also looked for mirrored.

        Fewer where fewer are registered; none where none is.
        """
        return self.nearest_to(views(pictures).cpu().numpy(), count)

    def nearest_to(self, seen: np.ndarray, count: int = 1) -> Nearest:
        """The same for pictures of which `views` (2, B, D) are known."""
        count = min(count, len(self))
        if not count:
            return Nearest(np.zeros((seen.shape[1], 0), np.int64), np.zeros((seen.shape[1], 0)))
        found = [self._tree.query(view, k=range(1, count + 1)) for view in seen]
        distances, positions = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(distances, axis=1, kind="stable")
        ranked = np.take_along_axis(positions, order, 1)
        # A work found both ways would otherwise take two of the places.
        kept = np.stack([_first_distinct(row, count) for row in ranked])
        order = np.take_along_axis(order, kept, 1)
        # Unit vectors: |a - b|^2 = 2 - 2 a.b
        similarity = 1 - np.take_along_axis(distances, order, 1) ** 2 / 2
        return Nearest(np.take_along_axis(positions, order, 1), similarity)

    @cached_property
    def _tree(self) -> scipy.spatial.KDTree:
        return scipy.spatial.KDTree(self.descriptors.numpy())

    @property
    def unmeasured(self) -> tuple[Work, ...]:
        """Works without scores of their own: added before these were kept."""
        return tuple(work for work in self.works if not work.own)

    def adding(self, other: Registry) -> Registry:
        """This registry and the works of `other` that it lacks. Raises CheckpointError for another autoencoder's.

        A work that both hold is left as it is, but takes its own scores from `other` where it has none, or where that
        brings its picture.
        """
        if not len(self):
            return other
        if self.autoencoder != other.autoencoder or self.latents.shape[1:] != other.latents.shape[1:]:
            raise CheckpointError("the registry was made with another model; works of two models cannot be mixed")
        known = {work.id for work in self.works}
        new = [i for i, work in enumerate(other.works) if work.id not in known]
        measured = {
            work.id: work.own for work in other.works if work.id in other.pictures or work.id not in self.pictures
        }
        kept = tuple(replace(work, own=measured.get(work.id) or work.own) for work in self.works)
        return replace(
            self,
            works=kept + tuple(other.works[i] for i in new),
            descriptors=torch.cat([self.descriptors, other.descriptors[new]]),
            latents=torch.cat([self.latents, other.latents[new]]),
            pictures={**self.pictures, **other.pictures},
        )

    def without(self, ids: Iterable[str]) -> Registry:
        """This registry less the works with `ids`. Raises InvalidRequestError for an id that is not registered."""
        gone = set(ids)
        if unknown := sorted(gone - {work.id for work in self.works}):
            raise InvalidRequestError(
                f"no work {unknown[0]!r} is registered; `twig registry list` names those that are"
            )
        kept = [i for i, work in enumerate(self.works) if work.id not in gone]
        return replace(
            self,
            works=tuple(self.works[i] for i in kept),
            descriptors=self.descriptors[kept],
            latents=self.latents[kept],
            pictures={id: pixels for id, pixels in self.pictures.items() if id not in gone},
        )


def views(pictures: Tensor) -> Tensor:
    """Descriptors (2, B, D) of pictures (B, 3, H, W) in [0, 1], as they are and mirrored."""
    return torch.stack([descriptors(view) for view in (pictures, mirrored(pictures))])


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Let no other process load the registry at `path`, change it and save it meanwhile; it waits for its turn.

    Who only reads needs no turn: the file is replaced whole. Raises InvalidRequestError where the folder is missing.
    """
    if not path.parent.is_dir():
        raise InvalidRequestError(f"there is no folder {path.parent} for the registry {path.name}")
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def index_works(
    components: Components,
    paths: Sequence[Path],
    *,
    keep_pictures: bool = False,
    passed_over: Callable[[InvalidRequestError], None] | None = None,
) -> Registry:
    """Index pictures, cropped and scaled to the model's own size; one with the pixels of another is taken once.

    Raises InvalidRequestError for a file that is no picture, or where there is none. passed_over: told why, in place of
    the error, of each file that is no picture, as long as there is one that is.
    """
    if not paths:
        raise InvalidRequestError(f"no pictures to index; files ending in {', '.join(sorted(_SUFFIXES))} are taken")
    found = {work.id: (work, pixels) for work, pixels in _read(paths, components.size, passed_over)}
    if not found:
        raise InvalidRequestError(f"none of {len(paths)} files is a picture that can be read")
    pixels = torch.cat([pixels for _, pixels in found.values()])
    pictures = {work.id: (one[0] * 255).round().to(torch.uint8) for work, one in found.values() if keep_pictures}
    latents = torch.cat([encode(components, chunk) for chunk in pixels.split(_CHUNK)])
    own = self_scores(components, pixels, latents, kept=keep_pictures)
    works = tuple(replace(work, own=scores) for (work, _), scores in zip(found.values(), own, strict=True))
    return Registry(components.hashes["vae"], works, descriptors(pixels), latents, pictures)


def pictures_in(folder: Path) -> list[Path]:
    """Picture files in a folder and the folders in it, by name; a picture itself stands for itself."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InvalidRequestError(f"there is no folder {folder}")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def _read(
    paths: Sequence[Path], size: tuple[int, int], passed_over: Callable[[InvalidRequestError], None] | None
) -> Iterator[tuple[Work, Tensor]]:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    for path in paths:
        try:
            picture = load_picture(path)
        except InvalidRequestError as error:
            if passed_over is None:
                raise
            passed_over(error)
            continue
        digest = pixel_hash(picture)
        yield Work(digest[:12], shown(path.name), digest, now), cropped_pixels(picture, size)


def cropped_pixels(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Pixels (1, 3, H, W) in [0, 1] of a picture scaled to `size` (height, width), cropped about its middle."""
    height, width = size
    return to_pixels(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS), height, width)


@torch.inference_mode()
def encode(components: Components, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] -> latents (B, C, h, w) float32 on the CPU, scaled as a UNet takes them."""
    vae = components.vae
    weight = next(vae.parameters())
    encoded = vae.encode((pixels * 2 - 1).to(weight), return_dict=False)[0]
    latents = encoded if isinstance(encoded, Tensor) else encoded.mode()
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return ((latents.float() - shift) * vae.config.scaling_factor).cpu().clone()


def _first_distinct(row: np.ndarray, count: int) -> np.ndarray:
    """Positions in `row` of the first occurrence of its first `count` distinct values."""
    _, first = np.unique(row, return_index=True)
    return np.sort(first)[:count]
