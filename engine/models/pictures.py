"""Pictures to pixels."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pixels(image: Image.Image, height: int, width: int) -> Tensor:
    """RGB picture -> pixels (1, 3, height, width) float32 in [0, 1]."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
