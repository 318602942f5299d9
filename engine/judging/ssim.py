"""Structural similarity maps, single and multi-scale, batched on any device."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.transfers import constant

_RADIUS = 5
_GAUSSIAN = [math.exp(-(offset**2) / (2 * 1.5**2)) for offset in range(-_RADIUS, _RADIUS + 1)]
_WINDOW = [weight / sum(_GAUSSIAN) for weight in _GAUSSIAN]
_C1, _C2 = 0.01**2, 0.03**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def interior(valid: Tensor) -> Tensor:
    """Pixels of a bool mask (B, H, W) whose whole window lies in it; all of it where that leaves none."""
    side = 2 * _RADIUS + 1
    outside = F.pad((~valid).float()[:, None], (_RADIUS,) * 4, value=1.0)
    inside = F.max_pool2d(F.max_pool2d(outside, (side, 1), stride=1), (1, side), stride=1)[:, 0] == 0
    return torch.where(inside.flatten(1).any(1)[:, None, None], inside, valid)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean (B,) of `values` (B, H, W) where `weights` (B, H, W) are; over the frame where there are none."""
    weights = weights.to(values)
    total = weights.sum((1, 2))
    return torch.where(total > 0, (values * weights).sum((1, 2)) / total.clamp_min(1e-12), values.mean((1, 2)))


def ssim_scales(a: Tensor, b: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM map (B, H, W) and multi-scale SSIM (B,), over `valid` (B, H, W), of pictures (B, C, H, W) in [0, 1].

    Both are means over channels. The map is scikit-image's: Gaussian windows of deviation 1.5 cut off at 5 pixels,
    population statistics, frames continued by reflection (Wang et al., IEEE TIP 2004, equation 13). Multi-scale SSIM
    takes contrast and structure at each halving and luminance at the last (Wang et al., Asilomar 2003, equation 7); a
    picture too small for five scales of whole windows (176 pixels) has as many as fit, with their weights normalised.
    """
    side = min(a.shape[-2:])
    scales = sum(side // 2**scale > 2 * _RADIUS for scale in range(len(_SCALE_WEIGHTS))) or 1
    weights = constant(_SCALE_WEIGHTS[:scales], a) / sum(_SCALE_WEIGHTS[:scales])
    luminance, structure = _terms(a, b)
    similarity, factors = (luminance * structure).mean(1), []
    for scale in range(scales):
        values = luminance * structure if scale == scales - 1 else structure
        factors.append(weighted_mean(values.mean(1), interior(valid)).clamp_min(0))
        if scale < scales - 1:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
            valid = F.avg_pool2d(valid.float()[:, None], 2)[:, 0] == 1
            luminance, structure = _terms(a, b)
    return similarity, (torch.stack(factors, 1) ** weights).prod(1)


def _terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure, (B, C, H, W) each; their product is SSIM."""
    fields = torch.stack((a, b, a * a, b * b, a * b))
    mean_a, mean_b, square_a, square_b, product = smoothed(fields, _WINDOW)
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return luminance, (2 * covariance + _C2) / (variances + _C2)


def smoothed(fields: Tensor, kernel: Sequence[float]) -> Tensor:
    """Convolve fields (..., H, W) with an odd symmetric kernel along both axes, frames continued by reflection."""
    return _smoothed_along(_smoothed_along(fields, kernel, -1), kernel, -2)


def _smoothed_along(fields: Tensor, kernel: Sequence[float], axis: int) -> Tensor:
    """Sum of shifted copies: on a CPU far faster than a convolution of one channel."""
    side, radius = fields.shape[axis], len(kernel) // 2
    position = torch.arange(-radius, side + radius, device=fields.device) % (2 * side)
    padded = fields.index_select(axis, torch.where(position < side, position, 2 * side - 1 - position))
    total = torch.zeros_like(fields)
    for offset, weight in enumerate(kernel):
        total.add_(padded.narrow(axis, offset, side), alpha=weight)
    return total
