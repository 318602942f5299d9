"""Maps of new scenes out of a bank's shapes: what a prompt names, arranged as in scenes of other pictures.

Each object takes the shape, the size and the place of a random object of its class in a scene with as many objects, so
that houses stand and moons hang where they do; that is tried until the arrangement is unlike the one to keep away from,
also after the best shift. The search runs on a small grid, and what it finds is painted once at full size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import scipy
from PIL import Image

from ..models.bank import Bank, Shape
from ..models.segmentation import plain_names
from .gathering import ground_name
from .objects import Aligned, coarse, objects_of
from .pieces import background_of, shape_overlap
from .words import in_all, lexicon

_TRIES = 60  # arrangements
_OWN_PLACES = 30  # of them in which shapes stand where they did; then where others did on the same ground
_DRAWS = 6  # shapes for an object's place in one of them
_FEWEST = 4  # shapes of scenes with as many objects, below which those of all scenes are drawn from
_MOST_OBJECTS = 8
_GRID = 64  # cells along the longer side of the frame that is searched
_GAP = 2  # cells between objects
_ALIKE = 0.5  # aligned IoU from which two arrangements are one
_ALIKE_ALONE = 0.7  # of a single object, whose shape is its class's
_CLEAR = 0.05  # of an arrangement may lie in a user's mask where there is another place
_ROUNDING = 0.01  # of the overlap, by the search's grid
_FRAGMENT = 0.25  # of a class's largest object: what is smaller in a draft is a part of it that came loose


@dataclass(frozen=True, eq=False)
class Placed:
    """A shape of a bank on a frame of any size: where its box lies and which pixels of that it covers.

    place: the shape where whose middle lies its own does; itself as a rule.
    """

    shape: Shape
    place: Shape
    mirrored: bool
    frame: tuple[int, int]

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns, whole inside the frame; proportions stay, and so does its middle's place in the frame."""
        scene, (height, width) = self.shape.scene, self.frame
        scale = min(height / scene.rows, width / scene.columns)
        sides = [
            max(1, min(most, round(side * scale))) for side, most in zip(self.shape.mask.shape, self.frame, strict=True)
        ]
        middles = (
            (self.place.top + self.place.mask.shape[0] / 2) / self.place.scene.rows * height,
            (self.place.left + self.place.mask.shape[1] / 2) / self.place.scene.columns * width,
        )
        down, right = (
            min(max(0, round(middle - side / 2)), most - side)
            for middle, side, most in zip(middles, sides, self.frame, strict=True)
        )
        right = width - right - sides[1] if self.mirrored else right
        return slice(down, down + sides[0]), slice(right, right + sides[1])

    @cached_property
    def mask(self) -> np.ndarray:
        """Pixels (h, w) bool of its box; a smooth outline where the frame is larger than its scene's."""
        rows, columns = self.box
        size = (columns.stop - columns.start, rows.stop - rows.start)
        own = self.shape.mask[:, ::-1] if self.mirrored else self.shape.mask
        if own.shape == size[::-1]:
            return own
        scaled = Image.fromarray(own.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(scaled) >= 128

    @cached_property
    def grown(self) -> np.ndarray:
        """It and `_GAP` pixels around it (H, W) bool."""
        wider = scipy.ndimage.binary_dilation(np.pad(self.mask, _GAP), np.ones((2 * _GAP + 1,) * 2))
        whole = np.zeros([side + 2 * _GAP for side in self.frame], bool)
        rows, columns = self.box
        whole[rows.start : rows.stop + 2 * _GAP, columns.start : columns.stop + 2 * _GAP] = wider
        return whole[_GAP:-_GAP, _GAP:-_GAP]


@dataclass(frozen=True, eq=False)
class Composition:
    """A map (H, W) and the shapes that it shows, by their ids."""

    labels: np.ndarray
    shapes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is to be drawn and kept away from.

    objects: label of each. labels (H, W): of the draft or photo; foreground (H, W) bool: its shape. avoided (H, W)
    bool: a user's mask that takes that one's place.
    """

    objects: tuple[int, ...]
    labels: np.ndarray
    foreground: np.ndarray
    avoided: np.ndarray | None = None


class Composer:
    """Composes maps of one segmenter's labels out of one bank.

    names: of the labels, as the segmenter gives them. background: numbers of those that are no object.
    """

    def __init__(self, bank: Bank, names: Sequence[str], background: frozenset[int]) -> None:
        self.bank = bank
        self.names = plain_names(names)
        self.background = background
        self.places = {
            ground: [s for s in bank.shapes if s.ground == ground] for ground in {s.ground for s in bank.shapes}
        }
        self._lexicon = lexicon(tuple(names), background)

    def named(self, prompt: str) -> tuple[int, ...]:
        """Label of each object that a prompt names."""
        return tuple(in_all(self._lexicon.read(prompt)).elements())

    def shown(self, labels: np.ndarray) -> tuple[int, ...]:
        """Label of each object that a draft's labels (H, W) show, fragments left out."""
        found = objects_of(coarse(labels), self.background)
        largest: dict[int, int] = {}
        for one in found:
            largest.setdefault(one.label, one.area)
        return tuple(one.label for one in found if one.area >= _FRAGMENT * largest[one.label])

    def compose(self, wanted: Wanted, max_iou: float, seed: int) -> Composition | None:
        """Arrange the objects wanted so that they overlap what is to be avoided by at most `max_iou`, `shape_overlap`.

        At most `_CLEAR` of them is to lie in a user's mask. The first of `_TRIES` arrangements that keeps this, and is
        unlike it wherever it may lie; else the first that keeps it, else the one that overlaps least. None where
        nothing or too much is wanted, an object has no shape in the bank, or none fits beside the others. Depends on
        `seed` alone.
        """
        if not 0 < len(wanted.objects) <= _MOST_OBJECTS:
            return None
        shelves = {label: self._shelf(label, len(wanted.objects)) for label in set(wanted.objects)}
        if not all(shelves.values()):
            return None
        rng = np.random.default_rng(seed)
        search = _Search(self, wanted, max_iou, rng)
        found = search.first(shelves)
        if found is None:
            return None
        return Composition(self._painted(wanted, found, search.mirrored), tuple(one.shape.id for one in found))

    def _shelf(self, label: int, count: int) -> tuple[Shape, ...]:
        """Shapes of a class in scenes with `count` objects, in all where these are too few."""
        every = self.bank.by_label.get(self.names[label], ())
        alike = tuple(shape for shape in every if shape.scene.objects == count)
        return alike if len(alike) >= _FEWEST else every

    def _painted(self, wanted: Wanted, found: Sequence[Placed], mirrored: bool) -> np.ndarray:
        """The background, without gaps and mirrored where the search's was, with the objects over it."""
        canvas = background_of(wanted.labels, wanted.foreground, _GRID)
        canvas = canvas[:, ::-1].copy() if mirrored else canvas
        height, width = canvas.shape
        for one in found:
            placed = Placed(one.shape, one.place, one.mirrored, (height, width))
            canvas[placed.box][placed.mask] = self.names.index(one.shape.label)
        return canvas


@lru_cache(maxsize=4096)
def _placed(shape: Shape, place: Shape, mirrored: bool, frame: tuple[int, int]) -> Placed:
    """A shape on a frame, remembered: grids of few sizes are searched again and again."""
    return Placed(shape, place, mirrored, frame)


class _Search:
    """Draws arrangements on a small grid. mirrored: whether the background is to be mirrored."""

    def __init__(self, composer: Composer, wanted: Wanted, max_iou: float, rng: np.random.Generator) -> None:
        self.composer, self.wanted, self.rng = composer, wanted, rng
        height, width = wanted.labels.shape
        scale = min(1.0, _GRID / max(height, width))
        self.frame = max(1, round(height * scale)), max(1, round(width * scale))
        self.old = _sampled(wanted.foreground, self.frame)
        self.avoided = None if wanted.avoided is None else _sampled(wanted.avoided, self.frame)
        self.most = (max_iou if self.avoided is None else min(max_iou, _CLEAR)) - _ROUNDING * (scale < 1)
        ground = background_of(_sampled(wanted.labels, self.frame), self.old, _GRID)
        self.grounds = {composer.names[i] for i in np.unique(ground) if i in composer.background}
        self.mirrored = len(self.grounds) > 1 and bool(rng.integers(2))
        self.ground = ground[:, ::-1] if self.mirrored else ground

    def first(self, shelves: dict[int, tuple[Shape, ...]]) -> tuple[Placed, ...] | None:
        """The first arrangement that keeps away and is unlike, else the first that keeps away, else the best there is.

        Not the least alike of all: of one class's shapes that is the worst drawn. None where none fits the frame.
        """
        to_avoid = self.old if self.avoided is None else self.avoided
        aligned = Aligned(to_avoid)
        alike = _ALIKE_ALONE if len(self.wanted.objects) == 1 else _ALIKE
        best, least, tried = None, np.inf, set()
        for number in range(_TRIES):
            found = self._arranged(shelves, anywhere=number >= _OWN_PLACES)
            if found is None or found in tried:
                continue
            tried.add(found)
            shape = np.zeros(self.frame, bool)
            for one in found:
                shape[one.box] |= one.mask
            overlap = shape_overlap(shape, self.old, self.avoided)
            keeps = overlap <= self.most
            if keeps and not aligned.reaches(alike, shape):
                return found
            if (0.0 if keeps else overlap) < least:
                best, least = found, 0.0 if keeps else overlap
        return best

    def _arranged(self, shelves: dict[int, tuple[Shape, ...]], *, anywhere: bool) -> tuple[Placed, ...] | None:
        """A shape for each object, apart from one another; None where one finds no room.

        anywhere: in the place of whatever stood on the same ground, rather than its own.
        """
        taken = np.zeros(self.frame, bool)
        found: list[Placed] = []
        for label in self.rng.permutation(self.wanted.objects):
            if found:
                taken |= found[-1].grown
            one = self._drawn(shelves[int(label)], taken, anywhere)
            if one is None:
                return None
            found.append(one)
        return tuple(found)

    def _drawn(self, shelf: tuple[Shape, ...], taken: np.ndarray, anywhere: bool) -> Placed | None:
        for _ in range(_DRAWS):
            shape, mirrored = shelf[self.rng.integers(len(shelf))], bool(self.rng.integers(2))
            places = self.composer.places[shape.ground] if anywhere else (shape,)
            one = _placed(shape, places[self.rng.integers(len(places))], mirrored, self.frame)
            if not taken[one.box][one.mask].any() and self._stands(one):
                return one
        return None

    def _stands(self, one: Placed) -> bool:
        """Whether it has beneath it what it had in its own scene, as far as that background is there at all."""
        if one.shape.ground not in self.grounds or len(self.grounds) == 1:
            return True
        rows, columns = one.box
        beneath = self.ground[rows.stop : rows.stop + 1, columns]
        return ground_name(beneath, self.composer.names, self.composer.background) in ("", one.shape.ground)


def _sampled(field: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """Nearest neighbours of a field (H, W) on a smaller grid."""
    rows, columns = (
        ((np.arange(count) + 0.5) * side / count).astype(int) for count, side in zip(frame, field.shape, strict=True)
    )
    return field[np.ix_(rows, columns)]
