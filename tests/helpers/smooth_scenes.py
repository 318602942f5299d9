"""Pictures and masks that similarity is measured on."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from twig.engine.judging.similarity import measure


def scene(seed=0, height=64, width=64, smooth=3.0):
    """A smooth random picture (1, 3, H, W) in [0, 1] with a few sharp discs."""
    rng = np.random.default_rng(seed)
    picture = gaussian_filter(rng.random((3, height, width)), (0, smooth, smooth), mode="wrap")
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    rows, columns = np.mgrid[:height, :width]
    for _ in range(4):
        y, x, r = rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width, rng.uniform(4, 8)
        picture[:, (rows - y) ** 2 + (columns - x) ** 2 < r**2] = rng.random((3, 1))
    return torch.from_numpy(picture).float()[None]


def disc(height=64, width=64, y=30, x=26, r=14):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - y) ** 2 + (columns - x) ** 2 < r**2)[None]


def measured(final, reference, mask=None, **more):
    mask = disc(*final.shape[2:]) if mask is None else mask
    return {name: float(value) for name, value in measure(final, reference, mask, **more).items()}


def whole(picture):
    return torch.ones_like(picture[:, 0], dtype=torch.bool)
