"""What else of a source remains where no object is copied: its arrangement, its background, its decoration.

A picture is near its source in one of them where it lies beyond what all but one in a hundred fresh scenes with the
same caption reach by chance.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ...engine.api.writing import write_whole
from ...engine.judging.ssim import ssim_scales, weighted_mean
from ...engine.judging.structure import arrangement, outside
from .data import Source
from .measures import Pictures, fresh_scenes, to_tensor
from .scenes import decorated, render

REMAINS = ("arrangement", "background", "decoration")
"""IoU of the objects' shapes after the best shift; structural similarity outside objects; and where the source's scene
has its cloud, window, stars or bubbles, as far as no object hides them."""

_QUANTILE = 0.99
_CHUNK = 100
_SEEN = 0.5  # of a decoration: where more is hidden nothing is said of it


def remains(pictures: Pictures, labels: np.ndarray, source: Source) -> dict[str, np.ndarray]:
    """Each of `REMAINS`, (B,), of pictures with labels (B, 64, 64) to a source; NaN for a hidden decoration."""
    chunks = range(0, len(pictures), _CHUNK)
    parts = [_remains(pictures[at : at + _CHUNK], labels[at : at + _CHUNK] > 0, source) for at in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in REMAINS}


def _remains(pictures: Pictures, shapes: np.ndarray, source: Source) -> dict[str, np.ndarray]:
    own, finals = torch.from_numpy(render(source.scene)[1] > 0), to_tensor(pictures)
    references = to_tensor([source.pixels]).expand(len(finals), -1, -1, -1)
    masks, final_masks = own.expand(len(finals), -1, -1), torch.from_numpy(shapes)
    similarity, _ = ssim_scales(finals, references, torch.ones_like(masks))
    there = torch.from_numpy(decorated(source.scene)) & ~own
    seen = there & ~final_masks
    count, whole = seen.sum((1, 2)), there.sum()
    decoration = torch.where(count > _SEEN * whole, (similarity * seen).sum((1, 2)) / count, torch.nan)
    background = weighted_mean(similarity, outside(masks | final_masks))
    return dict(
        zip(REMAINS, (arrangement(final_masks, masks).numpy(), background.numpy(), decoration.numpy()), strict=True)
    )


def remains_limits(source: Source, cache: Path) -> dict[str, float]:
    """For each of `REMAINS` the value beyond which a picture is near; kept in the folder `cache`."""
    path = cache / f"remains-{source.index}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    pictures, labels = zip(*(render(scene) for scene in fresh_scenes(source)), strict=True)
    values = remains(pictures, np.stack(labels), source)
    limits = {name: float(np.nanquantile(value, _QUANTILE)) for name, value in values.items()}
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(limits).encode())
    return limits


def near(values: Mapping[str, np.ndarray], limits: Mapping[str, float]) -> dict[str, list[int | None]]:
    """Whether each picture is near its source in each of `REMAINS`; None where that could not be seen."""
    return {name: [None if np.isnan(v) else int(v > limits[name]) for v in values[name]] for name in REMAINS}
