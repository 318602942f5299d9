"""Pictures to pixels, and pixels to pictures."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pixels(image: Image.Image, height: int, width: int) -> Tensor:
    """RGB picture -> pixels (1, 3, height, width) float32 in [0, 1]."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def eight_bits(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) in [0, 1] -> (..., H, W, 3) uint8 on the same device, as a picture has them."""
    return (pixels.movedim(-3, -1) * 255).round().to(torch.uint8)
