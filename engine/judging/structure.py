"""Distances and agreements of structure between pictures: tiles, edges, perceptual hashes, shapes. Batched."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.transfers import constant
from .distances import distances
from .ssim import smoothed

_LUMA = (0.299, 0.587, 0.114)
_SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))
_TILES = 4
_EDGE_GRID = 128  # longest side in pixels at which edges are compared
_EDGE_THRESHOLD = 0.05  # of full luma a pixel
_SHIFT_GRID = 64
_NEAR = 0.05  # of the frame's shorter side: so far around objects a picture is not its background
_HASH_SIDE = 32
_HASH_BITS = 8
_CLOSEST = 50


def luma(pictures: Tensor) -> Tensor:
    """RGB (B, 3, H, W) -> luma (B, H, W) by ITU-R BT.601."""
    return torch.einsum("bchw,c->bhw", pictures, constant(_LUMA, pictures))


def tile_l2(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Largest root mean square difference (B,) of 4 x 4 tiles of pictures (B, 3, H, W).

    Carlini et al., USENIX Security 2023, section 4.1: one tile that differs shows that two pictures do. Only `valid`
    (B, H, W) pixels count, and only tiles of which half are.
    """
    weights = valid.to(a)
    squared = (a - b).square().mean(1) * weights
    sums, shares = (F.adaptive_avg_pool2d(field[:, None], _TILES).flatten(1) for field in (squared, weights))
    means = torch.where(shares >= 0.5, sums / shares.clamp_min(1e-12), -1.0)
    whole = squared.sum((1, 2)) / weights.sum((1, 2)).clamp_min(1e-12)
    return torch.where(shares.amax(1) >= 0.5, means.amax(1), whole).sqrt()


def l2_ratio(finals: Tensor, references: Tensor, population: Tensor) -> Tensor:
    """Distance to the reference over half the mean distance to the 50 closest of a population (N, 3, H, W), (B,).

    Carlini et al., USENIX Security 2023, equation 2 with alpha = 0.5: below 1 the reference is unusually close.
    """
    flat, others = finals.flatten(1), population.to(finals).flatten(1)
    closest = torch.cdist(flat, others).sort(1).values[:, :_CLOSEST].mean(1)
    return (flat - references.flatten(1)).norm(dim=1) / (0.5 * closest).clamp_min(1e-12)


def edges(pictures: Tensor) -> Tensor:
    """Edge maps (B, h, w) bool of pictures (B, 3, H, W): Sobel gradients of luma, smoothed, above a threshold.

    At a grid of at most 128 pixels, so that edges mean the same at every size.
    """
    gray = luma(pictures)[:, None]
    shrink = math.ceil(max(gray.shape[-2:]) / _EDGE_GRID)
    gray = F.avg_pool2d(gray, shrink, ceil_mode=True, count_include_pad=False) if shrink > 1 else gray
    return _sobel(gray).square().sum(1).sqrt() > _EDGE_THRESHOLD


def gradients(pictures: Tensor) -> Tensor:
    """Sobel gradients (B, 2, H, W), across and down, of the smoothed luma of pictures (B, 3, H, W)."""
    return _sobel(luma(pictures)[:, None])


def _sobel(gray: Tensor) -> Tensor:
    padded = F.pad(smoothed(gray, (0.25, 0.5, 0.25)), (1, 1, 1, 1), mode="replicate")
    sobel = constant(_SOBEL, gray) / 8
    return F.conv2d(padded, torch.stack((sobel, sobel.T))[:, None])


def edge_f1(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """F1 score (B,) of the edges of two pictures (B, 3, H, W), within one pixel, where `valid` (B, H, W).

    Martin et al., TPAMI 2004: precision is the share of a's edges that lie near one of b's, recall the reverse. Two
    pictures without edges agree, one without does not.
    """
    first, second = edges(a), edges(b)
    grid = (first.shape[-2], first.shape[-1])
    inside = F.adaptive_avg_pool2d(valid.to(a)[:, None], grid)[:, 0] == 1
    inside = F.max_pool2d((~inside).float()[:, None], 5, stride=1, padding=2)[:, 0] == 0
    first, second = first & inside, second & inside
    precision, recall = _share_near(first, second), _share_near(second, first)
    score = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    neither = ~(first | second).flatten(1).any(1)
    return torch.where(neither, torch.ones_like(score), score)


def _share_near(points: Tensor, targets: Tensor) -> Tensor:
    near = F.max_pool2d(targets.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0
    return (points & near).sum((1, 2)) / points.sum((1, 2)).clamp_min(1)


def phash(pictures: Tensor) -> Tensor:
    """Perceptual hash (B, 64) bool: signs of `low_frequencies`, against their median (Zauner, 2010, section 3.2.1)."""
    spectrum = low_frequencies(pictures)
    return spectrum > spectrum.median(1, keepdim=True).values


def low_frequencies(pictures: Tensor) -> Tensor:
    """Cosine transform (B, 64) of 32 x 32 luma: the 8 x 8 frequencies after the constant ones."""
    gray = F.interpolate(luma(pictures)[:, None], (_HASH_SIDE, _HASH_SIDE), mode="area")[:, 0]
    position = torch.arange(_HASH_SIDE, device=gray.device, dtype=gray.dtype)
    frequency = torch.arange(1, _HASH_BITS + 1, device=gray.device, dtype=gray.dtype)
    cosines = torch.cos(math.pi / _HASH_SIDE * (position + 0.5) * frequency[:, None])
    return (cosines @ gray @ cosines.T).flatten(1)


def phash_distance(a: Tensor, b: Tensor) -> Tensor:
    """Bits (B,) in which the perceptual hashes of two pictures (B, 3, H, W) differ, of 64."""
    return (phash(a) != phash(b)).sum(1).to(a.dtype)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (B,) float32 of bool masks (B, H, W); 0 where both are empty."""
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp_min(1)


def arrangement(a: Tensor, b: Tensor) -> Tensor:
    """Largest intersection over union (B,) float32 of bool masks (B, H, W) over all shifts and a mirroring.

    At a grid of at most 64 cells, of which a mask has those that it covers at least by half.
    """
    shrink = math.ceil(max(a.shape[-2:]) / _SHIFT_GRID)
    both = F.avg_pool2d(torch.stack((a, b), 1).float(), shrink, ceil_mode=True) >= 0.5
    fixed, moving = both.float().unbind(1)
    # Twice the grid's size: nothing wraps around.
    size = (2 * fixed.shape[1], 2 * fixed.shape[2])
    views = torch.fft.rfft2(torch.stack((moving, moving.flip(2)), 1), size).conj()
    shared = torch.fft.irfft2(torch.fft.rfft2(fixed, size)[:, None] * views, size).amax((1, 2, 3))
    areas = both.sum((1, 2, 3))
    return torch.where(areas > 0, shared / (areas - shared), 0.0)


def outside(shapes: Tensor) -> Tensor:
    """Pixels (B, H, W) bool of the background: those further than `_NEAR` of the frame from shapes (B, H, W)."""
    reach = max(1, round(_NEAR * min(shapes.shape[-2:])))
    near = shapes.float()[:, None]
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        near = F.max_pool2d(near, kernel, stride=1, padding=padding)
    return near[:, 0] == 0


def hausdorff(a: Tensor, b: Tensor) -> Tensor:
    """Hausdorff distance (B,) float32 between the contours of bool masks (B, H, W), in diagonals of the frame.

    Huttenlocher et al., TPAMI 1993, equation 1. 0 between empty masks, 1 from an empty mask to any other.
    """
    lines = torch.stack((contour(a), contour(b)))
    there = lines.flatten(2).any(2)
    # From each mask's contour to the nearest pixel of the other's.
    reached = distances(lines.flip(0).flatten(0, 1)).reshape(lines.shape)
    furthest = torch.where(lines, reached, 0.0).amax((0, 2, 3)) / math.hypot(*a.shape[-2:])
    return torch.where(there.all(0), furthest, there.any(0).float())


def contour(masks: Tensor) -> Tensor:
    """Pixels (B, H, W) bool of a mask with a neighbour, above, below or beside, that is outside it or the frame."""
    padded = F.pad(masks, (1, 1, 1, 1))
    core = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return masks & ~core
