"""Objects of a label map, counted and compared: connected parts of one label that are more than specks."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import find_objects
from skimage.measure import label as connected_components

from ..models.bank import FRAME

SMALLEST = 0.01
"""Share of the frame below which a part is a speck and no object."""


@dataclass(frozen=True, eq=False)
class Found:
    """One object. label: of its class; rows, columns: the box it lies in; mask (h, w) bool: where it is in that."""

    label: int
    rows: slice
    columns: slice
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Pixels that are part of it."""
        return int(np.count_nonzero(self.mask))

    def is_cut(self, frame: tuple[int, ...]) -> bool:
        """Whether it reaches an edge of a `frame` (H, W), which may cut it off."""
        height, width = frame
        return self.rows.start == 0 or self.columns.start == 0 or self.rows.stop == height or self.columns.stop == width


def coarse(field: np.ndarray) -> np.ndarray:
    """Every so manieth pixel of a field (H, W, ...), `FRAME` along its longer side at most: enough to count by."""
    stride = math.ceil(max(field.shape[:2]) / FRAME)
    return field[::stride, ::stride]


def objects_of(labels: np.ndarray, background: Iterable[int]) -> list[Found]:
    """Objects of a label map (H, W), largest first; what touches by a corner is connected."""
    named = np.where(np.isin(labels, list(background)), -1, labels.astype(np.int64))
    parts = connected_components(named, background=-1, connectivity=2)
    found = []
    for number, box in enumerate(find_objects(parts), start=1):
        if box is None:
            continue
        rows, columns = box
        mask = parts[box] == number
        if np.count_nonzero(mask) >= SMALLEST * labels.size:
            top, left = np.argwhere(mask)[0]
            found.append(Found(int(named[rows.start + top, columns.start + left]), rows, columns, mask))
    return sorted(found, key=lambda one: -one.area)


def counted(objects: Iterable[Found]) -> Counter[int]:
    """How many objects of each label there are."""
    return Counter(one.label for one in objects)


class Aligned:
    """A shape (R, C) bool, to be compared with others wherever they may lie and mirrored or not."""

    def __init__(self, shape: np.ndarray) -> None:
        self.area = int(np.count_nonzero(shape))
        self._size = tuple(2 * side for side in shape.shape)
        views = np.stack([shape, shape[:, ::-1]]).astype(np.float32)
        self._spectra = rfft2(views, self._size).conj()

    def iou(self, other: np.ndarray) -> float:
        """Largest IoU with another shape (R, C) over all shifts and a mirroring; 0 where both are empty."""
        area = self.area + int(np.count_nonzero(other))
        if not area:
            return 0.0
        # Twice the frame's size: nothing wraps around.
        shared = irfft2(rfft2(other.astype(np.float32), self._size) * self._spectra, self._size).max()
        return float(shared / (area - shared))
