"""Objects of a label map, counted and compared: connected parts of one label that are more than specks."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy
import skimage

from ..models.bank import FRAME

SMALLEST = 0.01
"""Share of the frame below which a part is a speck and no object."""

_CLEAR = 1e-3  # of an IoU: more than a Fourier transform in single precision errs by


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
    parts = skimage.measure.label(named, background=-1, connectivity=2)
    found = []
    for number, box in enumerate(scipy.ndimage.find_objects(parts), start=1):
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
        self._spectra = scipy.fft.rfft2(views, self._size).conj()
        self._crops = [_Crop.of(view) for view in (shape, shape[:, ::-1])] if self.area else []

    def iou(self, other: np.ndarray) -> float:
        """Largest IoU with another shape (R, C) over all shifts and a mirroring; 0 where both are empty."""
        area = self.area + int(np.count_nonzero(other))
        if not area:
            return 0.0
        # Twice the frame's size: nothing wraps around.
        shared = scipy.fft.irfft2(
            scipy.fft.rfft2(other.astype(np.float32), self._size) * self._spectra, self._size
        ).max()
        return float(shared / (area - shared))

    def reaches(self, least: float, other: np.ndarray) -> bool:
        """Whether `iou` with another shape (R, C) is `least` or more, mostly told without a transform.

        It is no more than what the areas leave, and no less than where the middles of both lie on each other.
        """
        areas = self.area, int(np.count_nonzero(other))
        if min(areas) < (least - _CLEAR) * max(areas) or not min(areas):
            return least <= 0
        crop = _Crop.of(other)
        if any(crop.iou_about_middle(own) >= least + _CLEAR for own in self._crops):
            return True
        return self.iou(other) >= least


@dataclass(frozen=True, eq=False)
class _Crop:
    """A shape's pixels (h, w) bool, and how many of them are above and left of the middle of its area."""

    mask: np.ndarray
    middle: tuple[int, int]

    @classmethod
    def of(cls, shape: np.ndarray) -> Self:
        """Crop a shape (R, C) that is not empty."""
        rows, columns = (np.flatnonzero(shape.any(axis)) for axis in (1, 0))
        mask = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        down, right = (round(float(places.mean())) for places in np.nonzero(mask))
        return cls(mask, (down, right))

    def iou_about_middle(self, other: Self) -> float:
        """IoU with another where the middles of both lie on each other."""
        own, others = (_window(*pair) for pair in ((self, other), (other, self)))
        shared = np.count_nonzero(self.mask[own] & other.mask[others])
        return shared / (np.count_nonzero(self.mask) + np.count_nonzero(other.mask) - shared)


def _window(crop: _Crop, other: _Crop) -> tuple[slice, ...]:
    """The part of a crop that another covers where the middles of both lie on each other."""
    return tuple(
        slice(max(0, at - there), min(side, at - there + reach))
        for at, there, side, reach in zip(crop.middle, other.middle, crop.mask.shape, other.mask.shape, strict=True)
    )
