"""Scenes whose objects change size or shape where they stand, rather than move: the whole scene scaled or bent.

Both are maps of the frame to itself that never carry an object over its edge; a stronger one is tried until the scene's
shape overlaps the former one little enough.
"""

from collections.abc import Iterator

import numpy as np
import scipy

from ..api.choices import Warp
from .pieces import background_of, shape_overlap

_FACTORS = ((0.8, 1.25), (0.7, 1.45), (0.6, 1.7), (0.5, 2.0), (0.4, 2.4))
_AMPLITUDES = (0.3, 0.5, 0.7, 0.9, 1.2, 1.6)  # of the strongest bend
_DRAWS = 4  # of each strength
_BENDS = 4  # knots of a bent frame along each side
_SHARE = (0.1, 6.0)  # of its former size that an object may have
_SPECK = 0.02  # of the foreground: what is smaller may get lost
_SEARCH_SIDE = 96  # pixels: of a larger frame only every so manieth is searched

_Map = tuple[np.ndarray, np.ndarray]
"""Where each place of the frame comes from, (H, W) rows and columns in [0, 1]."""


def warped_labels(
    labels: np.ndarray,
    foreground: np.ndarray,
    kind: Warp,
    max_iou: float,
    seed: int,
    avoided: np.ndarray | None = None,
) -> np.ndarray:
    """Scale or bend (`kind`) the objects of labels (H, W), which `foreground` (H, W) marks, away from their shape.

    The weakest warp found that keeps `shape_overlap` at most `max_iou`, else that with the smallest; unchanged where
    none keeps every object whole and in the frame. The gaps take the nearest background. Depends on `seed` alone.
    """
    stride = -(-max(labels.shape) // _SEARCH_SIDE)
    small, shape, kept_clear = (
        None if each is None else each[::stride, ::stride] for each in (labels, foreground, avoided)
    )
    assert small is not None
    assert shape is not None
    least, best = 1.0, None
    for warp in _WARPS[kind](foreground, np.random.default_rng(seed)):
        iou = _overlap(small, shape, warp, kept_clear)
        if stride > 1 and iou <= max_iou:
            iou = _overlap(labels, foreground, warp, avoided)
        if iou < least:
            least, best = iou, warp
        if iou <= max_iou:
            break
    return labels.copy() if best is None else _painted(labels, foreground, best)


class _Scaling:
    """The frame scaled by a factor about an anchor (row, column), all in units of its sides."""

    def __init__(self, factor: float, anchor: tuple[float, float]) -> None:
        self.factor, self.anchor = factor, anchor

    def __call__(self, height: int, width: int) -> _Map:
        lines = ((_places(side) - a) / self.factor + a for side, a in zip((height, width), self.anchor, strict=True))
        rows, columns = np.meshgrid(*lines, indexing="ij")
        return rows, columns


class _Bending:
    """The frame bent smoothly: knots (2, n, n) of displacements, 1 of which reaches half way to the edge."""

    def __init__(self, knots: np.ndarray) -> None:
        self.knots = knots

    def __call__(self, height: int, width: int) -> _Map:
        places = np.meshgrid(_places(height), _places(width), indexing="ij")
        knots = [place * (_BENDS - 1) for place in places]
        bends = (scipy.ndimage.map_coordinates(bend, knots, order=3, mode="nearest") for bend in self.knots)
        # The edge comes from itself and every place from within the frame: so nothing new is cut off.
        rows, columns = (p + np.clip(bend, -1, 1) * p * (1 - p) for p, bend in zip(places, bends, strict=True))
        return rows, columns


_Warp = _Scaling | _Bending


def _scalings(foreground: np.ndarray, rng: np.random.Generator) -> Iterator[_Warp]:
    """Scalings that keep the scene in the frame, mild ones first."""
    lines = [np.asarray(foreground.any(1 - axis)) for axis in (0, 1)]
    for factors in _FACTORS:
        for factor in rng.permutation(np.repeat(factors, _DRAWS)):
            row, column = (_anchor(line, float(factor), rng) for line in lines)
            if row is not None and column is not None:
                yield _Scaling(float(factor), (row, column))


def _anchor(line: np.ndarray, factor: float, rng: np.random.Generator) -> float | None:
    """A point in 0..1 about which what stands on `line` is scaled within it; what an edge cuts off stays there."""
    used, side = np.flatnonzero(line), len(line)
    low, high, margin = float(used[0] / side), float((used[-1] + 1) / side), 1 / side
    if low == 0 or high == 1:
        anchor = float(rng.choice([edge for edge, cut in ((0.0, low == 0), (1.0, high == 1)) if cut]))
    elif factor < 1:
        anchor = rng.uniform()
    else:
        least, most = (factor * high - 1 + margin) / (factor - 1), (factor * low - margin) / (factor - 1)
        anchor = rng.uniform(max(least, 0.0), min(most, 1.0)) if max(least, 0.0) <= min(most, 1.0) else -1.0
    fits_low = low == 0 or anchor + factor * (low - anchor) >= margin
    fits_high = high == 1 or anchor + factor * (high - anchor) <= 1 - margin
    return anchor if anchor >= 0 and fits_low and fits_high else None


def _bendings(_foreground: np.ndarray, rng: np.random.Generator) -> Iterator[_Warp]:
    """Bends of the frame, mild ones first."""
    for amplitude in _AMPLITUDES:
        for _ in range(_DRAWS):
            yield _Bending(amplitude * rng.standard_normal((2, _BENDS, _BENDS)))


_WARPS = {Warp.SCALE: _scalings, Warp.ELASTIC: _bendings}


def _places(side: int) -> np.ndarray:
    return (np.arange(side) + 0.5) / side


def _sampled(labels: np.ndarray, foreground: np.ndarray, warp: _Warp) -> tuple[np.ndarray, np.ndarray]:
    """Warped labels and foreground, nearest neighbour; what comes from outside the frame is background."""
    places = warp(*labels.shape)
    inside = np.all([(place >= 0) & (place <= 1) for place in places], 0)
    rows, columns = (
        np.clip((place * side).astype(np.int64), 0, side - 1) for place, side in zip(places, labels.shape, strict=True)
    )
    return labels[rows, columns], foreground[rows, columns] & inside


def _overlap(labels: np.ndarray, foreground: np.ndarray, warp: _Warp, avoided: np.ndarray | None) -> float:
    """How much the warped shape overlaps the one to avoid.

    1 where an object is lost, torn, merged or changes size too much.
    """
    warped, shape = _sampled(labels, foreground, warp)
    if _parts(shape) != _parts(foreground):
        return 1.0
    for name, size in zip(*np.unique(labels[foreground], return_counts=True), strict=True):
        share = np.count_nonzero(warped[shape] == name) / size
        if size > _SPECK * foreground.sum() and not _SHARE[0] <= share <= _SHARE[1]:
            return 1.0
    return shape_overlap(shape, foreground, avoided)


def _parts(shape: np.ndarray) -> int:
    """Number of connected parts that are more than specks."""
    sizes = np.bincount(scipy.ndimage.label(shape)[0].ravel())[1:]
    return int(np.count_nonzero(sizes > _SPECK * sizes.sum()))


def _painted(labels: np.ndarray, foreground: np.ndarray, warp: _Warp) -> np.ndarray:
    warped, shape = _sampled(labels, foreground, warp)
    return np.where(shape, warped, background_of(labels, foreground))
