"""A label map taken apart into pieces that can be moved: all of it, its connected groups, its objects.

Objects are told apart by pixels; what is searched is a grid of cells, a pixel each up to 128 of them along a side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import scipy
import skimage

_SEARCH_GRID = 128  # cells along the frame's longer side, at most where its size allows
_SMALLEST_OBJECT = 0.02  # of the foreground: a smaller fragment belongs to its nearest neighbour
_PLAIN_CUT = 0.125  # of the frame's side: a longer cut is no plainer to see


@dataclass(frozen=True)
class Piece:
    """What moves as one: a crop of the label map whose sides are whole cells.

    labels (h, w); objects (h, w): the number of the object at each pixel, 0 outside the piece; ids: these numbers.
    covered (K, rows, columns): share of each cell that each of its objects covers. top, left: its home in cells, with
    the frame mirrored where the piece is. cuts: how plainly the frame cuts it off at its top, bottom, left and right,
    from 0 to 1. cell: side of a cell in pixels.
    """

    labels: np.ndarray
    objects: np.ndarray
    ids: tuple[int, ...]
    covered: np.ndarray
    top: int
    left: int
    cuts: tuple[float, float, float, float]
    cell: int
    mirrored: bool = False

    @property
    def area(self) -> int:
        """Pixels that are part of it."""
        return int(np.count_nonzero(self.objects))

    @property
    def cells(self) -> np.ndarray:
        """Cells (rows, columns) it touches, bool."""
        return np.asarray(self.covered.any(0))

    def varied(self, mirrored: bool, scale: float, pieces: "Pieces") -> Self:
        """Mirror it with the frame, and shrink it towards the middle of its foot."""
        piece = self._mirrored(pieces.grid[1]) if mirrored else self
        return piece._shrunk(scale) if scale < 1 else piece

    def _mirrored(self, columns: int) -> Self:
        top, bottom, left, right = self.cuts
        return replace(
            self,
            labels=self.labels[:, ::-1],
            objects=self.objects[:, ::-1],
            covered=self.covered[:, :, ::-1],
            left=columns - self.left - self.covered.shape[2],
            cuts=(top, bottom, right, left),
            mirrored=not self.mirrored,
        )

    def _shrunk(self, scale: float) -> Self:
        sampled = np.ix_(*(_samples(side, round(side * scale)) for side in self.labels.shape))
        labels, objects = self.labels[sampled], self.objects[sampled]
        up, right = (-side % self.cell for side in labels.shape)
        labels, objects = (np.pad(each, ((up, 0), (0, right))) for each in (labels, objects))
        down, narrower = ((a - b) // self.cell for a, b in zip(self.labels.shape, labels.shape, strict=True))
        covered = np.stack([_covered(objects == i, self.cell) for i in self.ids])
        top, left = self.top + down, self.left + narrower // 2
        return replace(self, labels=labels, objects=objects, covered=covered, top=top, left=left)

    def fits(self, pieces: "Pieces") -> bool:
        """Whether the frame has room for it."""
        return all(side <= frame for side, frame in zip(self.covered.shape[1:], pieces.grid, strict=True))

    def stamp(self, mask: np.ndarray, top: int, left: int) -> None:
        """Set its pixels in `mask` (H, W), its crop at `top` and `left` cells."""
        mask[self._place(top, left)] |= self.objects > 0

    def paint(self, canvas: np.ndarray, top: int, left: int) -> None:
        """Write its labels over `canvas` (H, W), its crop at `top` and `left` cells."""
        np.copyto(canvas[self._place(top, left)], self.labels, where=self.objects > 0)

    def _place(self, top: int, left: int) -> tuple[slice, slice]:
        height, width = self.objects.shape
        first, start = top * self.cell, left * self.cell
        return slice(first, first + height), slice(start, start + width)


@dataclass(frozen=True)
class Pieces:
    """One label map, taken apart.

    shape (H, W) bool: its foreground. scene: all of it. groups: its connected parts, largest first, if it has more
    than one. objects: connected parts of one label, where that is finer than groups. cell: side in pixels of the cells
    that the search runs on.
    """

    shape: np.ndarray
    scene: Piece
    groups: tuple[Piece, ...]
    objects: tuple[Piece, ...]
    cell: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.shape.shape[0] // self.cell, self.shape.shape[1] // self.cell

    def cells(self, mask: np.ndarray) -> np.ndarray:
        """Mask (H, W) -> share of each cell that it covers."""
        return _covered(mask, self.cell)


class Field:
    """A field (R, C) of cells that kernels are held against. cells: its values."""

    def __init__(self, cells: np.ndarray) -> None:
        self._shape = cells.shape
        self._spectrum = scipy.fft.rfft2(cells)

    @classmethod
    def around(cls, cells: np.ndarray) -> Self:
        """Cells (R, C) bool and their neighbours, 0 or 1."""
        return cls(scipy.ndimage.binary_dilation(cells, np.ones((3, 3))).astype(np.float64))

    def overlaps(self, kernels: np.ndarray) -> np.ndarray:
        """What each kernel (K, r, c) shares with the field at every place inside it: (K, R - r + 1, C - c + 1).

        A correlation by Fourier transform: inside the field nothing wraps around.
        """
        shared = scipy.fft.irfft2(self._spectrum * scipy.fft.rfft2(kernels, self._shape).conj(), self._shape)
        return shared[:, : self._shape[0] - kernels.shape[1] + 1, : self._shape[1] - kernels.shape[2] + 1]


def take_apart(labels: np.ndarray, foreground: np.ndarray) -> Pieces:
    """Find the pieces of `labels` (H, W) where `foreground` (H, W) is set, somewhere at least."""
    cell = _cell_size(*labels.shape)
    objects, group_of = _objects_and_groups(labels, foreground, cell)
    numbers = np.arange(1, len(group_of))
    whole = _Numbered(labels, objects, _counts(objects, len(group_of), cell), cell)
    groups = [numbers[group_of[1:] == group] for group in range(1, group_of.max() + 1)]
    return Pieces(
        shape=foreground,
        scene=whole.piece(numbers),
        groups=whole.pieces(groups),
        objects=whole.pieces([numbers[i : i + 1] for i in range(len(numbers))]) if len(numbers) > len(groups) else (),
        cell=cell,
    )


def background_of(labels: np.ndarray, foreground: np.ndarray, cells: int = _SEARCH_GRID) -> np.ndarray:
    """Labels (H, W) with the nearest background in place of the foreground.

    Found for cells of a few pixels where the longer side is more than `cells` pixels.
    """
    if foreground.all():
        return labels.copy()
    stride = -(-max(labels.shape) // cells)
    small, gaps = labels[::stride, ::stride], foreground[::stride, ::stride]
    surroundings = np.unique(small[~gaps])
    if not len(surroundings):
        stride, small, gaps = 1, labels, foreground
    elif len(surroundings) == 1:
        return np.where(foreground, surroundings[0], labels)
    _, (rows, columns) = scipy.ndimage.distance_transform_edt(gaps, return_indices=True)
    filled = small[rows, columns].repeat(stride, 0).repeat(stride, 1)[: labels.shape[0], : labels.shape[1]]
    return np.where(foreground, filled, labels)


def shape_overlap(shape: np.ndarray, former: np.ndarray, avoided: np.ndarray | None) -> float:
    """How much a new shape (H, W) overlaps what it is to keep away from, 0 to 1.

    IoU with the former shape, or, where another is to be avoided, the share of the new one that lies inside that.
    """
    if avoided is None:
        return intersection_over_union(former, shape)
    inside, area = int(np.count_nonzero(shape & avoided)), int(np.count_nonzero(shape))
    return inside / max(1, area)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two bool masks (H, W); 0 when both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


@dataclass(frozen=True)
class _Numbered:
    """A label map (H, W) with the number of each pixel's object, and how many pixels of each a cell has."""

    labels: np.ndarray
    objects: np.ndarray
    counts: np.ndarray
    cell: int

    def pieces(self, parts: Sequence[np.ndarray]) -> tuple[Piece, ...]:
        """One piece for each part, given by the numbers of its objects, largest first; none if there is only one."""
        if len(parts) < 2:
            return ()
        sizes = [-int(self.counts[ids].sum()) for ids in parts]
        return tuple(self.piece(parts[i]) for i in np.argsort(sizes, kind="stable"))

    def piece(self, ids: np.ndarray) -> Piece:
        """Crop objects, given by their numbers."""
        counts, cell = self.counts[ids], self.cell
        touched = counts.any(0)
        rows, columns = (np.flatnonzero(touched.any(axis)) for axis in (1, 0))
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        crop = slice(top * cell, bottom * cell), slice(left * cell, right * cell)
        return Piece(
            self.labels[crop],
            self._only(ids, self.objects[crop]),
            tuple(ids.tolist()),
            counts[:, top:bottom, left:right] / cell**2,
            top,
            left,
            self._cuts(ids),
            cell,
        )

    def _only(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        kept = np.zeros(len(self.counts), numbers.dtype)
        kept[ids] = ids
        return kept[numbers]

    def _cuts(self, ids: np.ndarray) -> tuple[float, float, float, float]:
        edges = (self.objects[0], self.objects[-1], self.objects[:, 0], self.objects[:, -1])
        top, bottom, left, right = (_cut(self._only(ids, edge)) for edge in edges)
        return top, bottom, left, right


def _cell_size(height: int, width: int) -> int:
    """Smallest side that divides the frame and leaves few enough cells, else the largest that divides it."""
    common = math.gcd(height, width)
    divisors = [side for side in range(1, common + 1) if common % side == 0]
    return next((side for side in divisors if max(height, width) <= side * _SEARCH_GRID), common)


def _objects_and_groups(labels: np.ndarray, foreground: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Number (H, W) of each pixel's object, from 1, and the group of each number, from 1 too; 0 is background.

    An object is a connected part of one label, with the fragments nearest to it. A group is objects that touch: a
    rider and the horse.
    """
    named = np.where(foreground, labels.astype(np.int64), -1)
    found = skimage.measure.label(named, background=-1, connectivity=2)
    sizes = np.bincount(found.ravel(), minlength=2)
    sizes[0] = 0
    large = np.flatnonzero(sizes >= min(sizes.max(), _SMALLEST_OBJECT * foreground.sum()))
    numbers = np.zeros(len(sizes), np.int64)
    numbers[large] = np.arange(1, len(large) + 1)
    cores = numbers[found]
    group_of = np.zeros(len(large) + 1, np.int64)
    group_of[cores] = skimage.measure.label(cores > 0, connectivity=2)
    fragments = foreground & (cores == 0)
    if not fragments.any():
        return cores, group_of
    nearest = _counts(cores, len(group_of), cell)
    nearest = np.where(nearest.any(0), nearest.argmax(0), 0)
    _, (rows, columns) = scipy.ndimage.distance_transform_edt(nearest == 0, return_indices=True)
    nearest = nearest[rows, columns].repeat(cell, 0).repeat(cell, 1)
    return np.where(fragments, nearest, cores), group_of


def _counts(numbers: np.ndarray, most: int, cell: int) -> np.ndarray:
    """Pixels (most, rows, columns) of each number from 1 in each cell of `numbers` (H, W); none are counted of 0."""
    rows, columns = (side // cell for side in numbers.shape)
    lines, posts = (np.arange(side) // cell for side in numbers.shape)
    at = numbers * (rows * columns) + lines[:, None] * columns + posts
    counts = np.bincount(at.ravel(), minlength=most * rows * columns).reshape(most, rows, columns)
    counts[0] = 0
    return counts


def _cut(edge: np.ndarray) -> float:
    """How plainly an edge of the frame cuts something off; objects (side,) along it."""
    return min(1.0, float(np.count_nonzero(edge)) / (_PLAIN_CUT * len(edge)))


def _samples(side: int, count: int) -> np.ndarray:
    """Nearest-neighbour indices that resample `side` pixels to `count`."""
    return ((np.arange(count) + 0.5) * side / count).astype(np.int64)


def _covered(mask: np.ndarray, cell: int) -> np.ndarray:
    blocks = mask.reshape(mask.shape[0] // cell, cell, mask.shape[1] // cell, cell)
    return np.asarray(blocks.mean((1, 3)))
