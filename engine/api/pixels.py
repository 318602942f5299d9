"""Pictures from outside: opened with care, upright, in RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .errors import ForeignFileError, InvalidRequestError
from .reading import MAX_PICTURE, open_regular, shown

MAX_PIXELS = 2**26
"""Largest picture that is opened, in pixels."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are opened; others of Pillow's start programs or are no pictures."""

Picture = Image.Image | Path | str
"""A picture, or where one lies."""

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
    if isinstance(picture, Image.Image):
        with _unwarned():
            return _guarded(picture, "the picture", max_pixels)
    with _opened(picture) as stream, opened(stream, shown(picture), max_pixels=max_pixels) as image:
        return _guarded(image, shown(picture), max_pixels)


@contextmanager
def opened(
    stream: BufferedReader | io.BytesIO,
    name: str,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Image.Image]:
    """Open a picture, not decoded yet, of `formats` and at most `max_pixels`.

    Whatever is wrong with it, also what is found while the caller reads it, is an InvalidRequestError that calls it
    `name`.
    """
    try:
        with _unwarned(), Image.open(stream, formats=formats) as image:
            _check_size(image, name, max_pixels)
            yield image
    except InvalidRequestError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidRequestError(f"{name} is no picture of a format read here: {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise InvalidRequestError(f"{name} is too large, at most {max_pixels} pixels: {error}") from error
    except Exception as error:
        raise _broken(name, error) from error


@contextmanager
def _unwarned() -> Iterator[None]:
    """Let Pillow keep to itself what it says of sizes below the limit here, and of tags that nobody reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(path: Path | str) -> BufferedReader:
    try:
        return open_regular(path, MAX_PICTURE)
    except ForeignFileError as error:
        raise ForeignFileError(f"no picture at {error}") from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if not 0 < image.width * image.height <= max_pixels:
        raise InvalidRequestError(f"{name} is {image.width} x {image.height}, none or more than {max_pixels} pixels")


def _guarded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Decode `image`, which may have been opened and not read yet, once its size is known to be one that is served."""
    _check_size(image, name, max_pixels)
    if image.mode[0] in "IF":
        raise InvalidRequestError(f"{name} has pixels of mode {image.mode}; save it with 8 bits a channel")
    try:
        image.load()
        return upright_rgb(image)
    except Exception as error:
        raise _broken(name, error) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture as it is seen: upright, in RGB, transparency over white; its pixels alone."""
    return _flat(_upright(image))


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
