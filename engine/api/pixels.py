"""Pictures from outside, opened by one guarded reader."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InvalidRequestError

MAX_PIXELS = 2**26
"""Largest picture that is opened, in pixels."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are opened; others of Pillow's start programs or are no pictures."""

Picture = Image.Image | Path | str
"""A picture, or where one lies."""


def load_picture(picture: Picture, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture upright, in RGB, transparency over white.

    Raises InvalidRequestError for a file that is missing, no picture, broken, or of more than `max_pixels`.
    """
    if isinstance(picture, Image.Image):
        return _seen(picture, "the picture", max_pixels)
    with opened(picture, str(picture), FORMATS, max_pixels) as image:
        return _seen(image, str(picture), max_pixels)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture as it is seen: upright, in RGB, transparency over white."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return upright.convert("RGB")


def _seen(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    if image.mode[0] in "IF":
        raise InvalidRequestError(f"{name} has pixels of mode {image.mode}; save it with 8 bits a channel")
    return upright_rgb(image)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise InvalidRequestError(f"{name} is {image.width} x {image.height}, more than {max_pixels} pixels")


@contextmanager
def opened(
    file: Path | str | io.BytesIO, name: str, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open a picture, not decoded yet, of `formats` and at most `max_pixels`.

    Whatever is wrong with it, also what is found while the caller reads it, is an InvalidRequestError that calls it
    `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is the lower one
            with Image.open(file, formats=formats) as image:
                _check_size(image, name, max_pixels)
                yield image
    except FileNotFoundError as error:
        raise InvalidRequestError(f"no picture at {name}") from error
    except UnidentifiedImageError as error:
        raise InvalidRequestError(f"{name} is no picture of a format read here: {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise InvalidRequestError(f"{name} is too large, at most {max_pixels} pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(f"{name} cannot be read as a picture: {error}") from error
