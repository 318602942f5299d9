"""Protected works: pictures of a folder, and which of them a picture is nearest to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..api.errors import InvalidRequestError
from ..api.pixels import load_picture
from ..avoidance.placement import avoidance_mask
from ..models.pictures import to_pixels
from ..models.segmentation import Segmenter
from .descriptors import descriptors, mirrored
from .similarity import measure

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Files of a folder that are taken for works."""

_SHORTLIST = 4
_CHUNK = 64


@dataclass(frozen=True)
class Works:
    """Protected works at the model's size: names, pixels (N, 3, H, W) in [0, 1] and shapes (N, H, W) bool."""

    names: tuple[str, ...]
    pixels: Tensor
    masks: Tensor

    @classmethod
    def load(cls, folder: Path, size: tuple[int, int], segmenter: Segmenter | None) -> Self:
        """Read every picture of `folder`; without a segmenter a work's shape is its whole frame.

        Raises InvalidRequestError for a folder without pictures, or a picture that cannot be read.
        """
        paths = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise InvalidRequestError(f"{folder} holds no picture; looked for files ending in {', '.join(SUFFIXES)}")
        pixels = torch.cat([to_pixels(load_picture(path), *size) for path in paths])
        names = tuple(str(path.relative_to(folder)) for path in paths)
        return cls(names, pixels, shapes(pixels, segmenter))

    def nearest(self, pixels: Tensor) -> list[tuple[int, dict[str, float]]]:
        """For each picture (B, 3, H, W), the work it shares most structure with, and every measure against that one."""
        similar = torch.maximum(
            *(descriptors(pixels) @ descriptors(works).T for works in (self.pixels, mirrored(self.pixels)))
        )
        shortlist = similar.topk(min(_SHORTLIST, len(self.names)), dim=1).indices
        found = [self._measured(pixels, column) for column in shortlist.T]
        best = torch.stack([values["ssim_masked_aligned"] for values in found]).argmax(0)
        return [
            (int(shortlist[i, k]), {name: float(value[i]) for name, value in found[k].items()})
            for i, k in enumerate(best.tolist())
        ]

    def _measured(self, pixels: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        return measured(pixels, self.pixels[chosen], self.masks[chosen])


def shapes(pixels: Tensor, segmenter: Segmenter | None) -> Tensor:
    """What is no background in pictures (N, 3, H, W), bool (N, H, W); all of it without a segmenter."""
    if segmenter is None:
        return torch.ones_like(pixels[:, 0], dtype=torch.bool)
    labels = torch.cat([segmenter(chunk).cpu() for chunk in pixels.split(_CHUNK)])
    return torch.from_numpy(avoidance_mask(labels.numpy(), segmenter.background))


def measured(finals: Tensor, references: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """`measure` over any number of pictures."""
    parts = [measure(*part) for part in zip(*(t.split(_CHUNK) for t in (finals, references, masks)), strict=True)]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
