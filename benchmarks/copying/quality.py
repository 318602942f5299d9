"""Quality and diversity of a method's pictures, by features of the test bed's own segmenter.

The distance is the Frechet distance of two Gaussians fitted to features (Heusel et al., NeurIPS 2017), which is only
comparable to itself: the network is ours, and so it bears no other name. The reference is scenes drawn afresh, none of
them a source. A distance falls with the number of pictures, so methods are compared at equal numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.linalg import norm
from scipy.linalg import sqrtm

from ...engine.models.segmentation import Segmenter
from .measures import Pictures, to_tensor
from .scenes import random_scene, render

REFERENCES = 2048
"""Fresh scenes that a method's pictures are held against."""

_CHUNK = 128
_SEED = 61


@torch.no_grad()
def features(pictures: Pictures, segmenter: Segmenter) -> np.ndarray:
    """Mean over the picture of what the segmenter's encoder ends on, (N, D) float64, for pictures (64, 64, 3) uint8."""
    encoder = segmenter.model.base_model
    device = next(encoder.parameters()).device
    found = []
    for start in range(0, len(pictures), _CHUNK):
        inputs = segmenter.preprocessing(to_tensor(pictures[start : start + _CHUNK]).to(device))
        found.append(encoder(pixel_values=inputs).last_hidden_state.mean((2, 3)).double().cpu().numpy())
    return np.concatenate(found)


def reference_features(segmenter: Segmenter, count: int = REFERENCES) -> np.ndarray:
    """Features (N, D) of fresh scenes, half of them of one object and half of two."""
    rng = np.random.default_rng(_SEED)
    return features([render(random_scene(rng, num_objects=1 + i % 2))[0] for i in range(count)], segmenter)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the Gaussians fitted to features (N, D) and (M, D)."""
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1])
    means = norm(a.mean(0) - b.mean(0)) ** 2
    return float(means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(np.real(root)))


def diversity(groups: Sequence[np.ndarray]) -> float | None:
    """Mean distance of two pictures of one caption, over groups (N, D) of features of a caption's pictures.

    None where no caption has two.
    """
    distances = []
    for group in (group for group in groups if len(group) > 1):
        gaps = norm(group[:, None] - group[None], axis=-1)
        distances.append(gaps[np.triu_indices(len(group), 1)].mean())
    return float(np.mean(distances)) if distances else None
