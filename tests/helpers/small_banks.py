"""Scenes of discs, squares and crosses for `tiny_models.LABELS`, and banks of them."""

from collections.abc import Sequence

import numpy as np

from tiny_models import LABELS
from twig.engine.avoidance.gathering import gathered, shapes_of
from twig.engine.models.bank import Bank

CIRCLE, SQUARE, STAR = 1, 2, 3


def drawn(objects: Sequence[tuple[int, float, float, float]], height: int = 64, width: int = 64) -> np.ndarray:
    """Label map (height, width) of objects (class, row, column, radius), the last on top."""
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int64)
    for kind, row, column, radius in objects:
        down, right = abs(rows - row), abs(columns - column)
        inside = {
            CIRCLE: down**2 + right**2 <= radius**2,
            SQUARE: np.maximum(down, right) <= 0.85 * radius,
            STAR: (np.maximum(down, right) <= radius) & (np.minimum(down, right) <= 0.35 * radius),
        }[kind]
        labels[inside] = kind
    return labels


def scene(rng: np.random.Generator, count: int) -> np.ndarray:
    """Label map of `count` objects of different classes, apart from one another and from the frame's edge."""
    kinds = rng.permutation([CIRCLE, SQUARE, STAR])[:count]
    places = rng.permutation([(18, 16), (46, 18), (18, 46), (46, 47)])[:count]
    return drawn([
        (int(kind), *(place + rng.uniform(-3, 3, 2)), rng.uniform(8, 11))
        for kind, place in zip(kinds, places, strict=True)
    ])  # fmt: skip


def small_bank(seed: int = 0, scenes: int = 60) -> Bank:
    """Shapes out of scenes of one, two and three objects."""
    rng = np.random.default_rng(seed)
    maps = [scene(rng, 1 + number % 3) for number in range(scenes)]
    return gathered([shapes_of(labels, LABELS, {0}) for labels in maps], f"{scenes} small scenes")
