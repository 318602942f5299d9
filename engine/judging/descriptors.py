"""Small descriptors of a picture's structure, by which the nearest of many registered works are found."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .structure import gradients, low_frequencies

_SIDE, _CELLS, _DIRECTIONS = 64, 8, 4

WIDTH = _CELLS**2 * (_DIRECTIONS + 1)
"""Numbers of a descriptor."""


def descriptors(pictures: Tensor) -> Tensor:
    """Unit vectors (B, 320) of pictures (B, 3, H, W) in [0, 1]; their product is a similarity in [-1, 1].

    One half is the strength of edges in four directions over 8 x 8 cells (after Dalal and Triggs, CVPR 2005), the other
    the 8 x 8 lowest cosine frequencies of luma, those of the perceptual hash (Zauner, 2010). Size, sharpness, exposure
    and re-encoding hardly change either. Nothing of a picture can be seen in them, though its layout can be guessed.
    """
    small = F.interpolate(pictures.float(), (_SIDE, _SIDE), mode="area")
    halves = (_unit(_edge_cells(small)), _unit(low_frequencies(small)))
    return torch.cat(halves, 1) / math.sqrt(2)


def mirrored(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) seen in a mirror."""
    return pictures.flip(-1)


def _edge_cells(pictures: Tensor) -> Tensor:
    """Mean strength of edges in each direction and cell (B, 256), against the mean over all cells."""
    across, down = gradients(pictures).unbind(1)
    angles = [math.pi * k / _DIRECTIONS for k in range(_DIRECTIONS)]
    strength = torch.stack([(across * math.cos(a) + down * math.sin(a)).abs() for a in angles], 1)
    cells = F.adaptive_avg_pool2d(strength, _CELLS).sqrt().flatten(1)
    return cells - cells.mean(1, keepdim=True)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-6)
