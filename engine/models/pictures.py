"""Pictures from outside: opened with care, upright, in RGB."""

import warnings
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..api.errors import ForeignFileError, InvalidRequestError
from ..api.reading import MAX_PICTURE, open_regular, shown
from ..api.request import Picture

MAX_PIXELS = 2**26
"""Largest picture that is opened, in pixels."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are opened; others of Pillow's start programs or are no pictures."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by the orientation in its tags."""


def load_picture(picture: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture upright, in RGB, transparency over white; of several frames the first.

    Of what is written about the picture, the orientation alone is heeded, and nothing else goes on. Raises
    InvalidRequestError for a file that is missing, no picture, broken, or of more than `max_pixels`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes below the limit here, and of tags that nobody reads
        if isinstance(picture, Image.Image):
            return _guarded(picture, "the picture", max_pixels)
        return _read(picture, shown(picture), max_pixels)


def _read(path: Path | str, name: str, max_pixels: int) -> Image.Image:
    with _opened(path) as stream:
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise InvalidRequestError(f"{name} is no picture of a format read here: {', '.join(FORMATS)}") from error
        except Image.DecompressionBombError as error:
            raise InvalidRequestError(f"{name} is too large, at most {max_pixels} pixels: {error}") from error
        except Exception as error:
            raise _broken(name, error) from error
        with image:
            return _guarded(image, name, max_pixels)


def _opened(path: Path | str) -> BufferedReader:
    try:
        return open_regular(path, MAX_PICTURE)
    except ForeignFileError as error:
        raise ForeignFileError(f"no picture at {error}") from error


def _guarded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Decode `image`, which may have been opened and not read yet, once its size is known to be one that is served."""
    if not 0 < image.width * image.height <= max_pixels:
        raise InvalidRequestError(f"{name} is {image.width} x {image.height}, none or more than {max_pixels} pixels")
    if image.mode[0] in "IF":
        raise InvalidRequestError(f"{name} has pixels of mode {image.mode}; save it with 8 bits a channel")
    try:
        image.load()
        return _flat(_upright(image))
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> InvalidRequestError:
    """The error for a picture that Pillow gave up; damaged ones make it raise almost anything."""
    return InvalidRequestError(f"{name} cannot be read as a picture: {type(error).__name__}: {shown(error)}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # tags that cannot be read say nothing
        orientation = None
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _flat(image: Image.Image) -> Image.Image:
    """Return pixels alone, in RGB: a copy, also of a picture that was in RGB."""
    if image.mode == "La":  # the one mode with transparency that has no way to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    rgb = image.convert("RGB")
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def to_pixels(image: Image.Image, height: int, width: int) -> Tensor:
    """RGB picture -> pixels (1, 3, height, width) float32 in [0, 1]."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
