"""A bank of shapes: for one model, what objects of each class look like and where in scenes they stand. No pixel.

The map that a new scene is drawn after is composed of them. The file is safetensors whose header names labels and
scenes; its version is a digest of what is held, and what the file says of it is not believed.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..api.reading import MEBIBYTE, check_regular, parse_json, reading, shown
from ..api.writing import sweep, write_whole

FILE = "bank.safetensors"
"""Name of the bank in a model's folder."""

FRAME = 128
"""Cells along the longer side of a scene's frame, at most."""

MAX_BANK = 64 * MEBIBYTE
"""Largest file of a bank, in bytes."""

_FORMAT = "twig-bank-1"
_MOST_OBJECTS = 1024  # in one scene
_COLUMNS = ("scene", "label", "ground", "top", "left", "height", "width")
_NOTHING = -1  # beneath an object: more of the frame's edge than of any background


@dataclass(frozen=True)
class Scene:
    """A scene that shapes were found in: its id, the cells (rows, columns) of its frame, how many objects it shows."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    rows: Annotated[int, Field(ge=1, le=FRAME)]
    columns: Annotated[int, Field(ge=1, le=FRAME)]
    objects: Annotated[int, Field(ge=1, le=_MOST_OBJECTS)]


@dataclass(frozen=True, eq=False)
class Shape:
    """One connected object of a scene.

    label: name of its class. ground: name of the background beneath it, empty where there is none. top, left: cells
    above and beside it in its scene's frame; mask (h, w) bool: the cells of its box that it covers.
    """

    scene: Scene
    label: str
    ground: str
    top: int
    left: int
    mask: np.ndarray

    @property
    def id(self) -> str:
        """Names it in records: its scene and its place there."""
        return f"{self.scene.id}-{self.top}-{self.left}"


_SCENES = TypeAdapter(tuple[Scene, ...])
_LABELS = TypeAdapter(tuple[Annotated[str, Field(strict=True, min_length=1, max_length=128)], ...])


@dataclass(frozen=True, eq=False)
class Bank:
    """Shapes, and what they were gathered from, in words."""

    shapes: tuple[Shape, ...]
    description: str

    @cached_property
    def by_label(self) -> Mapping[str, tuple[Shape, ...]]:
        """Shapes by the name of their class, the names in order."""
        names = sorted({shape.label for shape in self.shapes})
        return {name: tuple(shape for shape in self.shapes if shape.label == name) for name in names}

    @cached_property
    def version(self) -> str:
        """A digest of 128 bits of everything that is held, to name in manifests."""
        header, tensors = self._content()
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name in sorted(tensors):
            digest.update(f"{name}{tensors[name].shape}".encode() + tensors[name].tobytes())
        return digest.hexdigest()[:32]

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read `path`. Raises ForeignFileError, a CheckpointError, for a file that is no bank."""
        with reading(path, "no bank of shapes"):
            check_regular(path, MAX_BANK)
            header, tensors = _opened(path)
            parse_json(header["scenes"], path)
            scenes, labels = _SCENES.validate_json(header["scenes"]), _LABELS.validate_json(header["labels"])
            shapes = _shapes(scenes, labels, tensors["objects"], tensors["masks"])
            return cls(shapes, header["description"])

    def save(self, path: Path | str) -> None:
        """Write `path`, whole or not at all."""
        sweep(Path(path).parent)
        header, tensors = self._content()
        write_whole(Path(path), save(tensors, header | {"format": _FORMAT, "version": self.version}))

    def _content(self) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """Header and tensors: objects (K, 7) int32 by `_COLUMNS`; masks, the bits of all of them one after another."""
        scenes = {shape.scene.id: shape.scene for shape in self.shapes}
        labels = sorted({name for shape in self.shapes for name in (shape.label, shape.ground) if name})
        number = {id: place for place, id in enumerate(scenes)}
        rows = [
            (
                number[shape.scene.id],
                labels.index(shape.label),
                labels.index(shape.ground) if shape.ground else _NOTHING,
                shape.top,
                shape.left,
                *shape.mask.shape,
            )
            for shape in self.shapes
        ]
        bits = np.concatenate([shape.mask.ravel() for shape in self.shapes]) if rows else np.zeros(0, bool)
        header = {
            "scenes": json.dumps([vars(scene) for scene in scenes.values()]),
            "labels": json.dumps(labels),
            "description": self.description,
        }
        objects = np.array(rows, np.int32).reshape(-1, len(_COLUMNS))
        return header, {"objects": objects, "masks": np.packbits(bits)}


def _opened(path: Path | str) -> tuple[Mapping[str, str], dict[str, np.ndarray]]:
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"its format is {shown(repr(header.get('format')))}, expected {_FORMAT!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    for name, found in (
        *((n, header) for n in ("scenes", "labels", "description")),
        ("objects", tensors),
        ("masks", tensors),
    ):
        if name not in found:
            raise ValueError(f"it holds no {name}")
    return header, tensors


def _shapes(
    scenes: Sequence[Scene], labels: Sequence[str], objects: np.ndarray, masks: np.ndarray
) -> tuple[Shape, ...]:
    """The shapes that a file's tensors hold; raises ValueError unless they fit each other, labels and scenes."""
    if len({scene.id for scene in scenes}) != len(scenes):
        raise ValueError("two of its scenes have one id")
    if objects.dtype != np.int32 or objects.ndim != 2 or objects.shape[1] != len(_COLUMNS):
        raise ValueError(f"objects must be int32 of any x {len(_COLUMNS)}, got {objects.dtype} of {objects.shape}")
    for row in objects.tolist():
        _check_object(dict(zip(_COLUMNS, row, strict=True)), scenes, labels)
    sizes = [height * width for *_, height, width in objects.tolist()]
    wanted = math.ceil(sum(sizes) / 8)
    if masks.dtype != np.uint8 or masks.shape != (wanted,):
        raise ValueError(
            f"masks must be uint8 of {wanted}, the bits of all objects, got {masks.dtype} of {masks.shape}"
        )
    crops = np.split(np.unpackbits(masks, count=sum(sizes)).astype(bool), np.cumsum(sizes)[:-1])
    found = tuple(
        Shape(scenes[scene], labels[label], labels[ground] if ground >= 0 else "", top, left, crop.reshape(h, w))
        for (scene, label, ground, top, left, h, w), crop in zip(objects.tolist(), crops, strict=bool(sizes))
    )
    if empty := next((shape for shape in found if not shape.mask.any()), None):
        raise ValueError(f"the mask of {empty.id} is empty")
    return found


def _check_object(row: Mapping[str, int], scenes: Sequence[Scene], labels: Sequence[str]) -> None:
    """Raise ValueError unless a row names a scene and labels that there are, and a box inside that scene's frame."""
    if not 0 <= row["scene"] < len(scenes):
        raise ValueError(f"an object of scene {row['scene']}; its scenes are 0 to {len(scenes) - 1}")
    for name, least in (("label", 0), ("ground", _NOTHING)):
        if not least <= row[name] < len(labels):
            raise ValueError(f"an object with {name} {row[name]}; its labels are 0 to {len(labels) - 1}")
    scene = scenes[row["scene"]]
    for start, length, side in (("top", "height", scene.rows), ("left", "width", scene.columns)):
        if row[start] < 0 or row[length] < 1 or row[start] + row[length] > side:
            raise ValueError(
                f"an object with {start} {row[start]} and {length} {row[length]}; its frame has {side} cells there"
            )
