"""Pictures that clients send: few, small, of three formats, and looked at before they are decoded."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..api.errors import InvalidRequestError
from ..api.json_fields import FORMATS, data_of
from ..api.pixels import load_picture, opened
from .errors import ApiError

Files = Mapping[str, bytes]
"""What a form holds besides its fields, by name: `image` and maybe `mask`."""


@dataclass(frozen=True)
class Uploads:
    """A decoded photo, and where its client wants something else: bool (height, width) of the photo, or None."""

    photo: Image.Image
    mask: np.ndarray | None


def decoded(files: Files, max_pixels: int) -> Uploads:
    """Decode what was sent. Raises ApiError naming the file that is no picture, or larger than `max_pixels`."""
    if "image" not in files:
        raise ApiError(400, "missing_required_parameter", "image: a picture is needed", param="image")
    photo = _read(files["image"], "image", max_pixels)
    if "mask" not in files:
        return Uploads(photo, None)
    mask = _marked(files["mask"], max_pixels)
    if mask.shape != (photo.height, photo.width):
        sizes = f"mask is {mask.shape[1]} x {mask.shape[0]} and image {photo.width} x {photo.height}"
        raise ApiError(400, "invalid_value", f"{sizes}; they must be of one size", param="mask")
    return Uploads(photo, mask)


def control_image(text: str, max_pixels: int) -> Image.Image:
    """Decode a control image in base64. Raises ApiError for what is none, or larger than `max_pixels`."""
    try:
        data = data_of(text)
    except ValueError as error:
        raise ApiError(400, "invalid_image", f"twig.controls: {error}", param="twig.controls") from error
    return _read(data, "twig.controls", max_pixels)


def scaled(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """A mask at another size, each pixel that of the nearest."""
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _read(data: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        with opened(io.BytesIO(data), name, FORMATS, max_pixels) as image:
            return load_picture(image, max_pixels)
    except InvalidRequestError as error:
        raise ApiError(400, "invalid_image", str(error), param=name) from error


def _marked(data: bytes, max_pixels: int) -> np.ndarray:
    """Where a mask is transparent, as the API has it; of one that is opaque everywhere, where it is white."""
    try:
        with opened(io.BytesIO(data), "mask", FORMATS, max_pixels) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
    except InvalidRequestError as error:
        raise ApiError(400, "invalid_image", str(error), param="mask") from error
    if alpha is not None and (alpha < 255).any():
        return np.asarray(alpha < 128)
    return np.asarray(_read(data, "mask", max_pixels).convert("L")) > 127
