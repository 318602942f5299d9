"""What is measured on pictures of the test bed: similarity to a source, adherence to a caption, sharpness.

A picture copies its source where a measure lies beyond what all but one in a thousand fresh scenes with the same
caption reach by chance. `PRIMARY` decides; measures in `UNTUNED` neither gate nor tune anything and are reported
beside it. `ARRANGEMENT`, `BACKGROUND` and `DECORATION` ask for less than a copy, whether where things stand and what
lies behind them is the source's, and count beyond one fresh scene in a hundred.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from skimage.filters import laplace
from torch import Tensor

from ...engine.api.metrics import ALL_METRICS
from ...engine.api.writing import write_whole
from ...engine.judging.similarity import measure
from ...engine.judging.ssim import ssim_scales, weighted_mean
from ...engine.models.segmentation import Segmenter
from .checker import Adherence, check
from .data import Source
from .scenes import Scene, decorated, random_scene, render

PRIMARY = "ssim_masked"
"""The measure by which a picture counts as a copy."""

ALIGNED = "ssim_masked_aligned"
"""The same after the best mirror, scale and shift: a copy that was only moved still counts here."""

ARRANGEMENT = "arrangement"
"""Largest intersection over union of the objects' shapes with the source's over all shifts and a mirror."""

BACKGROUND = "background"
"""Structural similarity outside the objects of both."""

DECORATION = "decoration"
"""Structural similarity where the source has its cloud, window, stars or bubbles; NaN where objects hide most of it."""

UNTUNED = ("edge_f1", "hausdorff", "phash", "ssim")
"""Measures that never gated a picture and by which no setting was chosen."""

Pictures: TypeAlias = Sequence[np.ndarray] | np.ndarray
"""Pictures (64, 64, 3) uint8, in a list or stacked."""

REPORTED = (PRIMARY, ALIGNED, ARRANGEMENT, BACKGROUND, DECORATION, "ms_ssim", "tile_l2", "mask_iou", *UNTUNED)

_FRESH = 400
_QUANTILE = 0.999
_NEAR = dict.fromkeys((ARRANGEMENT, BACKGROUND, DECORATION), 0.99)
_SEEN = 0.5  # of a decoration: where more is hidden nothing is said of it
_CHUNK = 100


def to_tensor(pictures: Iterable[np.ndarray]) -> Tensor:
    """Pictures (H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 255


def same_caption(scene: Scene, rng: np.random.Generator) -> Scene:
    """A fresh scene that the same caption describes."""
    layout = random_scene(rng, num_objects=len(scene.objects))
    objects = tuple(
        type(new)(old.kind, old.colour, new.x, new.y, new.radius, new.flipped)
        for old, new in zip(scene.objects, layout.objects, strict=True)
    )
    return Scene(scene.background, objects, layout.details)


def find_labels(pictures: Pictures, segmenter: Segmenter) -> np.ndarray:
    """Labels (B, 64, 64) that the segmenter finds in pictures (64, 64, 3) uint8."""
    chunks = [pictures[start : start + _CHUNK] for start in range(0, len(pictures), _CHUNK)]
    return np.concatenate([segmenter(to_tensor(chunk)).cpu().numpy() for chunk in chunks])


def similarities(pictures: Pictures, labels: np.ndarray, source: Source) -> dict[str, np.ndarray]:
    """Each measure of `REPORTED`, (B,), of pictures with these labels (B, 64, 64) to a source."""
    shape = torch.from_numpy(render(source.scene)[1] > 0)
    values: dict[str, list[np.ndarray]] = {name: [] for name in REPORTED}
    for start in range(0, len(pictures), _CHUNK):
        finals = to_tensor(pictures[start : start + _CHUNK])
        count, shapes = len(finals), torch.from_numpy(labels[start : start + _CHUNK] > 0)
        found = measure(
            finals,
            to_tensor([source.pixels] * count),
            shape.expand(count, -1, -1),
            final_masks=shapes,
        )
        found[DECORATION] = _decoration(finals, shapes, source)
        for name in REPORTED:
            values[name].append(found[name].numpy())
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


def _decoration(finals: Tensor, shapes: Tensor, source: Source) -> Tensor:
    """`DECORATION` (B,) of finals (B, 3, H, W) whose objects are at `shapes` (B, H, W)."""
    there = torch.from_numpy(decorated(source.scene) & (render(source.scene)[1] == 0))
    similarity, _ = ssim_scales(finals, to_tensor([source.pixels]).expand_as(finals), torch.ones_like(shapes))
    seen = there & ~shapes
    count = seen.sum((1, 2))
    return torch.where(count > _SEEN * there.sum(), (similarity * seen).sum((1, 2)) / count, torch.nan)


def source_similarity(pictures: Pictures, source: Source) -> np.ndarray:
    """Structural similarity of pictures to a source inside the source's objects, (B,): `measure`'s `PRIMARY` alone."""
    shape = torch.from_numpy(render(source.scene)[1] > 0).expand(len(pictures), -1, -1)
    references = to_tensor([source.pixels]).expand(len(pictures), -1, -1, -1)
    similarity, _ = ssim_scales(to_tensor(pictures), references, torch.ones_like(shape))
    return weighted_mean(similarity, shape).numpy()


def fresh_scenes(source: Source, count: int = _FRESH) -> list[Scene]:
    """Scenes with the source's caption that are no copies of it."""
    rng = np.random.default_rng((31, source.index, 0))
    return [same_caption(source.scene, rng) for _ in range(count)]


def copy_threshold(source: Source) -> float:
    """Similarity above which a picture counts as a copy: 99.9th percentile of fresh scenes with the same caption."""
    return float(np.quantile(source_similarity([render(s)[0] for s in fresh_scenes(source)], source), _QUANTILE))


def copy_limits(source: Source, cache: Path) -> dict[str, float]:
    """For each measure of `REPORTED`, the value beyond which a picture counts as a copy; kept in the folder `cache`."""
    path = cache / f"{source.index}.json"
    if path.is_file() and (kept := dict(json.loads(path.read_text()))).keys() >= set(REPORTED):
        return kept
    limits = _copy_limits(source)
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(limits).encode())
    return limits


@lru_cache(maxsize=64)
def _rendered(source: Source) -> tuple[list[np.ndarray], np.ndarray]:
    pictures, labels = zip(*(render(scene) for scene in fresh_scenes(source)), strict=True)
    return list(pictures), np.stack(labels)


def _copy_limits(source: Source) -> dict[str, float]:
    values = similarities(*_rendered(source), source)
    return {name: _limit(name, value) for name, value in values.items()}


def _limit(name: str, values: np.ndarray) -> float:
    """Value beyond which chance leads too rarely, of those (N,) of fresh scenes."""
    quantile = _NEAR.get(name, _QUANTILE)
    return float(np.nanquantile(values, quantile if _rises(name) else 1 - quantile))


def _rises(name: str) -> bool:
    return name in _NEAR or ALL_METRICS[name].direction == "similarity"


def copied(values: Mapping[str, np.ndarray], limits: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Whether each picture is a copy by each measure, bool (B,)."""
    return {name: value > limits[name] if _rises(name) else value < limits[name] for name, value in values.items()}


def adherence(pictures: Pictures, labels: np.ndarray, scenes: Sequence[Scene]) -> list[Adherence]:
    """What each picture got right of its scene's caption."""
    return [check(p, found, scene) for p, found, scene in zip(pictures, labels, scenes, strict=True)]


def sharpness(pictures: Pictures) -> np.ndarray:
    """Variance of the Laplacian of each picture's grey values in [0, 1], (B,): a blurred picture scores low."""
    grey = np.stack(list(pictures)).astype(np.float64) @ (0.299, 0.587, 0.114) / 255
    return np.array([laplace(one).var() for one in grey])
