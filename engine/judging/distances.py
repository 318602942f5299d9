"""How far every pixel lies from a shape: exact Euclidean distance transforms of a batch, on any device."""

import numpy as np
import scipy
import torch
from torch import Tensor

_CHUNK = 2**25  # sums that a device holds at a time
_SMALL = 64
"""Side of pictures, in pixels, up to which a processor spends less on the sums than on importing SciPy's transform."""


def distances(masks: Tensor) -> Tensor:
    """Distance (B, H, W) float32, in pixels, from each pixel to the nearest that is set in masks (B, H, W) bool.

    More than the frame's diagonal where a mask is empty. A processor runs SciPy's transform, picture by picture, where
    they are large; else it is the lower envelope of a parabola a pixel, all of a row at once (Felzenszwalb and
    Huttenlocher, Theory of Computing 2012, section 2.1, by comparison of all pairs in a row), with nothing that a
    device must be waited for.
    """
    is_large = max(masks.shape[1:]) > _SMALL
    return _by_scipy(masks) if is_large and masks.device.type == "cpu" else by_rows(masks)


def by_rows(masks: Tensor) -> Tensor:
    """`distances` by comparing what each pixel of a row has above and below it."""
    _, height, width = masks.shape
    far = float(height + width)
    rows = torch.arange(height, device=masks.device, dtype=torch.float32)[:, None]
    above = torch.where(masks, rows, -far).cummax(1).values
    below = torch.where(masks, rows, height + far).flip(1).cummin(1).values.flip(1)
    squares = torch.minimum(rows - above, below - rows).square().flatten(0, 1)
    columns = torch.arange(width, device=masks.device, dtype=torch.float32)
    across = (columns[:, None] - columns).square()
    parts = squares.split(max(1, _CHUNK // width**2))
    return torch.cat([(part[:, None] + across).amin(2) for part in parts]).reshape(masks.shape).double().sqrt().float()


def _by_scipy(masks: Tensor) -> Tensor:
    far = sum(masks.shape[1:])
    found = [
        scipy.ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, far)
        for mask in masks.numpy()
    ]
    return torch.from_numpy(np.stack(found)).float()
