"""A bank of shapes out of label maps: whole objects, and of each class those that are most like the others of it.

What is least like its class is what a draft drew badly: maps are to be new by their arrangement, not by odd shapes.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from ..models.bank import Bank, Scene, Shape
from .objects import Found, coarse, objects_of

TYPICAL = 0.6
"""Share of a class's shapes that is kept."""

_FEWEST = 4  # shapes of a class that are kept whatever they are like
_SIDE = 24  # cells of the square that shapes are compared in
_CHUNK = 1024


def shapes_of(labels: np.ndarray, names: Sequence[str], background: Iterable[int]) -> tuple[Shape, ...]:
    """Whole objects of a label map (H, W), at `FRAME` cells at most; none that an edge of the frame may cut off.

    names: plain name of each label. background: labels that are no object.
    """
    small, surroundings = coarse(labels), frozenset(background)
    objects = objects_of(small, surroundings)
    if not objects:
        return ()
    rows, columns = small.shape
    scene = Scene(_id(small, names), rows, columns, len(objects))
    return tuple(
        Shape(
            scene,
            names[one.label],
            ground_name(_beneath(small, one), names, surroundings),
            one.rows.start,
            one.columns.start,
            one.mask,
        )
        for one in objects
        if not one.is_cut(small.shape)
    )


def gathered(scenes: Iterable[Sequence[Shape]], description: str) -> Bank:
    """The typical shapes of scenes, each scene once. description: what they were gathered from, in words."""
    distinct = {shapes[0].scene.id: shapes for shapes in scenes if shapes}
    whole = Bank(tuple(shape for shapes in distinct.values() for shape in shapes), description)
    return Bank(tuple(one for shelf in whole.by_label.values() for one in typical(shelf)), description)


def typical(shelf: Sequence[Shape]) -> list[Shape]:
    """The `TYPICAL` share of shapes of one class with the highest mean IoU to the others, all at one size."""
    views = np.stack([_at_one_size(shape.mask) for shape in shelf])
    likeness = np.concatenate([_mean_iou(views[at : at + _CHUNK], views) for at in range(0, len(views), _CHUNK)])
    best = np.argsort(-likeness, kind="stable")[: max(_FEWEST, round(TYPICAL * len(shelf)))]
    return [shelf[place] for place in sorted(best)]


def ground_name(labels: np.ndarray, names: Sequence[str], background: frozenset[int]) -> str:
    """Plain name of the commonest background among `labels`, empty where there is none."""
    found, counts = np.unique(labels[np.isin(labels, list(background))], return_counts=True)
    return names[int(found[counts.argmax()])] if len(found) else ""


def _beneath(labels: np.ndarray, one: Found) -> np.ndarray:
    """Labels of the row right below an object's box; none where it stands on the frame's edge."""
    return labels[one.rows.stop : one.rows.stop + 1, one.columns]


def _at_one_size(mask: np.ndarray) -> np.ndarray:
    rows, columns = (((np.arange(_SIDE) + 0.5) * side / _SIDE).astype(int) for side in mask.shape)
    return mask[np.ix_(rows, columns)]


def _mean_iou(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean IoU (B,) of masks (B, S, S) with others (N, S, S), each as it is or mirrored, whichever is more alike."""
    flat = some.reshape(len(some), -1).astype(np.float32)
    views = [view.reshape(len(others), -1).astype(np.float32) for view in (others, others[:, :, ::-1])]
    areas = flat.sum(1)[:, None] + views[0].sum(1)
    shared = np.maximum(*(flat @ view.T for view in views))
    return np.asarray((shared / (areas - shared)).mean(1))


def _id(labels: np.ndarray, names: Sequence[str]) -> str:
    held = "\0".join(names).encode() + f"{labels.shape}".encode() + labels.astype("<i4").tobytes()
    return hashlib.sha256(held).hexdigest()[:16]
