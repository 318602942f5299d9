"""The mirror, scale and shift that lay one picture over another: a moved copy is still a copy.

Candidates are compared by normalised correlation over the overlap, at every shift at once in the Fourier domain
(Padfield, IEEE TIP 2012), first on a coarse grid, then at full resolution.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .structure import luma

_SCALES = (1.0, 0.9, 1.1, 0.8, 1.25)
_LARGEST_SHIFT = 0.25  # of each side
_COARSE_GRID = 48  # pixels along the longest side


class Alignment(NamedTuple):
    """How each of B references is laid over its final, best of mirrors, scales and shifts.

    mirrored (B,) bool; scale (B,) about the frame's middle; shift (B, 2) pixels down and right; correlation (B,) of
    luma over the overlap.
    """

    mirrored: Tensor
    scale: Tensor
    shift: Tensor
    correlation: Tensor

    def apply(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Lay pictures (B, C, H, W) over: the result, continued at its edges, and (B, H, W) bool where it is real."""
        return _warped(pictures, self.mirrored, self.scale, self.shift)


def align(finals: Tensor, references: Tensor) -> Alignment:
    """Find how references (B, 3, H, W) lie best over finals (B, 3, H, W).

    Shifts reach a quarter of each side, scales 0.8 to 1.25.
    """
    fixed, moving = luma(finals)[:, None], luma(references)[:, None]
    stride = math.ceil(max(fixed.shape[-2:]) / _COARSE_GRID)
    best = _search(*(F.avg_pool2d(field, stride) for field in (fixed, moving)))
    if stride == 1:
        return best
    coarse = Alignment(best.mirrored, best.scale, best.shift * stride, best.correlation)
    picture, valid = coarse.apply(moving)
    window = (stride, stride)
    correlation, correction = _best_shift(_Spectra.of(fixed), picture[:, 0], valid, window)
    return Alignment(best.mirrored, best.scale, coarse.shift + correction, correlation)


def _search(fixed: Tensor, moving: Tensor) -> Alignment:
    """Try every mirror and scale."""
    count = len(fixed)
    spectra = _Spectra.of(fixed)
    window = (int(fixed.shape[-2] * _LARGEST_SHIFT), int(fixed.shape[-1] * _LARGEST_SHIFT))
    still = moving.new_zeros(count, 2)
    found = []
    for scale in _SCALES:
        for mirrored in (False, True):
            flags = torch.full((count,), mirrored, device=moving.device)
            scales = torch.full((count,), scale, device=moving.device)
            picture, valid = _warped(moving, flags, scales, still)
            correlation, shift = _best_shift(spectra, picture[:, 0], valid, window)
            found.append(Alignment(flags, scales, shift, correlation))
    winner = torch.stack([each.correlation for each in found]).argmax(0)
    rows = torch.arange(count, device=moving.device)
    return Alignment(*(torch.stack(field)[winner, rows] for field in zip(*found, strict=True)))


def _warped(pictures: Tensor, mirrored: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, scale about the middle, then shift: bilinear (B, C, H, W), and where it falls inside the source."""
    height, width = pictures.shape[-2:]
    rows, columns = (
        (torch.arange(side, device=pictures.device) - (side - 1) / 2 - moved[:, None]) / scale[:, None]
        for side, moved in zip((height, width), shift.unbind(1), strict=True)
    )
    columns = torch.where(mirrored[:, None], -columns, columns)
    y, x = 2 * rows / height, 2 * columns / width
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    warped = F.grid_sample(pictures, grid.to(pictures), padding_mode="border", align_corners=False)
    inside = [each.abs() <= (side - 1) / 2 + 1e-3 for each, side in ((rows, height), (columns, width))]
    return warped, inside[0][:, :, None] & inside[1][:, None, :]


@dataclass(frozen=True)
class _Spectra:
    """Fourier transforms of the fixed fields (B, H, W), padded to twice their size, that every candidate meets."""

    ones: Tensor
    values: Tensor
    squares: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, fixed: Tensor) -> "_Spectra":
        field = fixed[:, 0] - fixed.mean((1, 2, 3))[:, None, None]
        size = (2 * field.shape[-2], 2 * field.shape[-1])
        ones, values, squares = (torch.fft.rfft2(f, size) for f in (torch.ones_like(field), field, field**2))
        return cls(ones, values, squares, size)


def _best_shift(fixed: _Spectra, moving: Tensor, valid: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Correlation (B,) and shift (B, 2) of the best shift of `moving` (B, H, W), valid (B, H, W), within a window."""
    weight = valid.to(moving)
    moving = (moving - moving.mean((1, 2))[:, None, None]) * weight
    spectra = [torch.fft.rfft2(field, fixed.size).conj() for field in (weight, moving, moving**2)]

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        full = torch.fft.irfft2(a * b, fixed.size)
        rolled = full.roll(window, (-2, -1))
        return rolled[:, : 2 * window[0] + 1, : 2 * window[1] + 1]

    count = correlate(fixed.ones, spectra[0]).clamp_min(1)
    sum_fixed, sum_moving = correlate(fixed.values, spectra[0]), correlate(fixed.ones, spectra[1])
    covariance = correlate(fixed.values, spectra[1]) - sum_fixed * sum_moving / count
    spread_fixed = (correlate(fixed.squares, spectra[0]) - sum_fixed**2 / count).clamp_min(0)
    spread_moving = (correlate(fixed.ones, spectra[2]) - sum_moving**2 / count).clamp_min(0)
    # A flat overlap correlates with nothing; rounding must not make it look like a match.
    least = 1e-5 * count
    correlation = covariance / (spread_fixed.clamp_min(least) * spread_moving.clamp_min(least)).sqrt()
    best, index = correlation.flatten(1).max(1)
    columns = 2 * window[1] + 1
    shift = torch.stack((index // columns - window[0], index % columns - window[1]), 1)
    return best, shift.to(moving.dtype)
