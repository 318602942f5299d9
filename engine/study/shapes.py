"""Where a bank's shapes come from: drafts of a user's captions that nothing marks as recalled, and label maps."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..api.errors import InvalidRequestError
from ..api.pixels import opened
from ..api.reading import MAX_PICTURE, open_regular, shown
from ..api.result import GenerationResult
from ..avoidance.gathering import gathered, shapes_of
from ..avoidance.objects import coarse, counted, objects_of
from ..avoidance.words import in_all, lexicon
from ..models.bank import Bank, Shape
from ..models.segmentation import Segmenter

_MAPS = frozenset({".png", ".tif", ".tiff", ".bmp"})
_NUMBERS = frozenset({"1", "L", "P", "I", "I;16"})
"""Pillow's modes in which a pixel is one number: the label's own."""


@dataclass(frozen=True)
class Drafted:
    """The shapes of a draft, and the signals by which a gate would tell whether it looks recalled."""

    shapes: tuple[Shape, ...]
    signals: Mapping[str, float]

    def fresh(self, limits: Mapping[str, float]) -> bool:
        """Whether no signal passes its limit; one that was not measured might."""
        return all(self.signals.get(name, math.nan) <= limit for name, limit in limits.items())


def drafted(results: Iterable[GenerationResult], segmenter: Segmenter) -> Iterator[Drafted]:
    """Drafts that show what their captions name, each object once where they name none; of the others nothing."""
    words = lexicon(segmenter.labels, segmenter.background)
    for result in results:
        if result.label_map is None or result.gate is None:
            continue
        labels = coarse(result.label_map)
        seen, named = counted(objects_of(labels, segmenter.background)), in_all(words.read(result.request.words))
        if seen == named or (not named and seen and max(seen.values()) == 1):
            signals = {name: score.value for name, score in result.gate.signals.items()}
            yield Drafted(shapes_of(labels, segmenter.names, segmenter.background), signals)


def brought(folder: Path, segmenter: Segmenter) -> list[tuple[Shape, ...]]:
    """Shapes of the label maps in a folder: pictures whose pixels are numbers of the segmenter's labels.

    Raises InvalidRequestError for a folder without any, or a map with another number.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _MAPS) if folder.is_dir() else []
    if not paths:
        raise InvalidRequestError(
            f"{shown(folder)} holds no label maps; they are pictures in {', '.join(sorted(_MAPS))}"
        )
    return [shapes_of(_map(path, segmenter), segmenter.names, segmenter.background) for path in paths]


def bank(drafts: Sequence[Drafted], maps: Sequence[tuple[Shape, ...]], limits: Mapping[str, float]) -> Bank:
    """The typical shapes of fresh drafts and of label maps. limits: of the gate, that fresh drafts keep.

    Raises InvalidRequestError where they hold no whole object.
    """
    fresh = [draft.shapes for draft in drafts if draft.fresh(limits)]
    told = [f"{len(fresh)} drafts"] * bool(fresh) + [f"{len(maps)} label maps"] * bool(maps)
    found = gathered([*fresh, *maps], " and ".join(told))
    if not found.shapes:
        raise InvalidRequestError(
            f"no whole object in {len(fresh)} fresh drafts and {len(maps)} label maps, so there is no bank of shapes: "
            "name things in the captions that the segmenter has labels for"
        )
    return found


def _map(path: Path, segmenter: Segmenter) -> np.ndarray:
    """A label map as it lies in a file, (H, W)."""
    with open_regular(path, MAX_PICTURE) as stream, opened(stream, shown(path)) as image:
        if image.mode not in _NUMBERS:
            raise InvalidRequestError(
                f"{shown(path)} has pixels of mode {image.mode}; a label map has one number a pixel"
            )
        labels = np.array(image).astype(np.int64)
    if labels.min() < 0 or labels.max() >= len(segmenter.labels):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise InvalidRequestError(
            f"{shown(path)} holds label {wrong}; the segmenter's are 0 to {len(segmenter.labels) - 1}"
        )
    return labels
