"""Pictures as answers bring them, in base64."""

import base64
import io

import numpy as np
from PIL import Image

from ...engine.records.pictures import png


def encoded(picture: Image.Image) -> str:
    """PNG in base64, as Twig's server writes it."""
    return base64.b64encode(png(picture)).decode()


def decoded(text: str) -> np.ndarray:
    """Pixels (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
