"""A label map taken apart into pieces that can be moved: all of it, its connected groups, its objects."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import binary_dilation, distance_transform_edt
from skimage.measure import label as connected_components

_SEARCH_GRID = 128  # cells along the frame's longer side, at most where its size allows
_SMALLEST_OBJECT = 0.02  # of the foreground: a smaller fragment belongs to its nearest neighbour
_PLAIN_CUT = 0.125  # of the frame's side: a longer cut is no plainer to see


@dataclass(frozen=True)
class Piece:
    """What moves as one: a crop of the label map whose sides are whole cells.

    labels (h, w); objects (h, w): the number of the object at each pixel, 0 outside the piece; ids: these numbers.
    top, left: its home in cells, with the frame mirrored where the piece is. cuts: how plainly the frame cuts it off
    at its top, bottom, left and right, from 0 to 1. cell: side of a cell in pixels.
    """

    labels: np.ndarray
    objects: np.ndarray
    ids: tuple[int, ...]
    top: int
    left: int
    cuts: tuple[float, float, float, float]
    cell: int
    mirrored: bool = False

    @classmethod
    def of(cls, labels: np.ndarray, objects: np.ndarray, cell: int) -> Self:
        """Crop the pixels where `objects` (H, W) is not 0."""
        rows, columns = np.flatnonzero(objects.any(1)), np.flatnonzero(objects.any(0))
        top, left = int(rows[0]) // cell, int(columns[0]) // cell
        bottom, right = int(rows[-1]) // cell + 1, int(columns[-1]) // cell + 1
        crop = (slice(top * cell, bottom * cell), slice(left * cell, right * cell))
        cuts = (_cut(objects[0]), _cut(objects[-1]), _cut(objects[:, 0]), _cut(objects[:, -1]))
        ids = tuple(int(i) for i in np.unique(objects) if i)
        return cls(labels[crop], objects[crop], ids, top, left, cuts, cell)

    @property
    def area(self) -> int:
        """Pixels that are part of it."""
        return int(np.count_nonzero(self.objects))

    @property
    def cells(self) -> np.ndarray:
        """Cells (rows, columns) it touches, 0 or 1."""
        return _touched(self.objects > 0, self.cell)

    @property
    def object_cells(self) -> np.ndarray:
        """Share of each cell (K, rows, columns) that each of its objects covers."""
        return np.stack([_covered(self.objects == i, self.cell) for i in self.ids])

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
            left=columns - self.left - self.labels.shape[1] // self.cell,
            cuts=(top, bottom, right, left),
            mirrored=not self.mirrored,
        )

    def _shrunk(self, scale: float) -> Self:
        sampled = np.ix_(*(_samples(side, round(side * scale)) for side in self.labels.shape))
        labels, objects = self.labels[sampled], self.objects[sampled]
        up, right = (-side % self.cell for side in labels.shape)
        labels, objects = (np.pad(each, ((up, 0), (0, right))) for each in (labels, objects))
        down, narrower = ((a - b) // self.cell for a, b in zip(self.labels.shape, labels.shape, strict=True))
        return replace(self, labels=labels, objects=objects, top=self.top + down, left=self.left + narrower // 2)

    def fits(self, pieces: "Pieces") -> bool:
        """Whether the frame has room for it."""
        return all(side <= frame * self.cell for side, frame in zip(self.labels.shape, pieces.grid, strict=True))

    def stamp(self, mask: np.ndarray, top: int, left: int) -> None:
        """Set its pixels in `mask` (H, W), its crop at `top` and `left` pixels."""
        height, width = self.objects.shape
        mask[top : top + height, left : left + width] |= self.objects > 0

    def paint(self, canvas: np.ndarray, top: int, left: int) -> None:
        """Write its labels over `canvas` (H, W)."""
        height, width = self.objects.shape
        np.copyto(canvas[top : top + height, left : left + width], self.labels, where=self.objects > 0)


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

    def surroundings(self, mask: np.ndarray) -> np.ndarray:
        """Mask (H, W) -> the cells it touches and their neighbours, 0 or 1."""
        return binary_dilation(_touched(mask, self.cell), np.ones((3, 3))).astype(np.float64)


def take_apart(labels: np.ndarray, foreground: np.ndarray) -> Pieces:
    """Find the pieces of `labels` (H, W) where `foreground` (H, W) is set, somewhere at least."""
    cell = _cell_size(*labels.shape)
    objects, groups = _objects_and_groups(labels, foreground)
    return Pieces(
        shape=foreground,
        scene=Piece.of(labels, objects, cell),
        groups=_separate(labels, groups, objects, cell),
        objects=_separate(labels, objects, objects, cell) if objects.max() > groups.max() else (),
        cell=cell,
    )


def background_of(labels: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Labels (H, W) with the nearest background in place of the foreground."""
    _, (rows, columns) = distance_transform_edt(foreground, return_indices=True)
    return np.asarray(labels[rows, columns])


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


def overlaps(field: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """What each kernel (K, r, c) shares with `field` (R, C) at every place inside it: (K, R - r + 1, C - c + 1).

    A correlation by Fourier transform: inside the field nothing wraps around.
    """
    spectrum = rfft2(field) * rfft2(kernels, field.shape).conj()
    shared = irfft2(spectrum, field.shape)
    return shared[:, : field.shape[0] - kernels.shape[1] + 1, : field.shape[1] - kernels.shape[2] + 1]


def _cell_size(height: int, width: int) -> int:
    """Smallest side that divides the frame and leaves few enough cells, else the largest that divides it."""
    common = math.gcd(height, width)
    divisors = [side for side in range(1, common + 1) if common % side == 0]
    return next((side for side in divisors if max(height, width) <= side * _SEARCH_GRID), common)


def _objects_and_groups(labels: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number (H, W) of each pixel's object and of its group, from 1; 0 is background.

    An object is a connected part of one label, with the fragments nearest to it. A group is objects that touch: a
    rider and the horse.
    """
    named = np.where(foreground, labels.astype(np.int64), -1)
    found = connected_components(named, background=-1, connectivity=2)
    sizes = np.bincount(found.ravel(), minlength=2)
    sizes[0] = 0
    large = np.flatnonzero(sizes >= min(sizes.max(), _SMALLEST_OBJECT * foreground.sum()))
    numbers = np.zeros(len(sizes), np.int64)
    numbers[large] = np.arange(1, len(large) + 1)
    cores = numbers[found]
    _, (rows, columns) = distance_transform_edt(cores == 0, return_indices=True)
    objects = np.where(foreground, cores[rows, columns], 0)
    group_of = np.zeros(len(large) + 1, np.int64)
    group_of[cores] = connected_components(cores > 0, connectivity=2)
    return objects, group_of[objects]


def _separate(labels: np.ndarray, grain: np.ndarray, objects: np.ndarray, cell: int) -> tuple[Piece, ...]:
    """One piece for each number of `grain`, largest first; none if there is only one."""
    sizes = np.bincount(grain.ravel())[1:]
    if len(sizes) < 2:
        return ()
    order = np.argsort(-sizes, kind="stable") + 1
    return tuple(Piece.of(labels, np.where(grain == number, objects, 0), cell) for number in order)


def _cut(edge: np.ndarray) -> float:
    """How plainly an edge of the frame cuts something off; objects (side,) along it."""
    return min(1.0, float(np.count_nonzero(edge)) / (_PLAIN_CUT * len(edge)))


def _samples(side: int, count: int) -> np.ndarray:
    """Nearest-neighbour indices that resample `side` pixels to `count`."""
    return ((np.arange(count) + 0.5) * side / count).astype(np.int64)


def _blocks(mask: np.ndarray, cell: int) -> np.ndarray:
    return mask.reshape(mask.shape[0] // cell, cell, mask.shape[1] // cell, cell)


def _covered(mask: np.ndarray, cell: int) -> np.ndarray:
    return np.asarray(_blocks(mask, cell).mean((1, 3)))


def _touched(mask: np.ndarray, cell: int) -> np.ndarray:
    return np.asarray(_blocks(mask, cell).any((1, 3)), np.float64)
