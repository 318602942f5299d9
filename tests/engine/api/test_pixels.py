"""Pictures from outside, and what of them is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.pixels import load_picture


def picture(height, width, seed=0):
    """Smooth random picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def png_header(width, height):
    """A valid PNG that claims a size and holds no pixels to speak of."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100))))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(60000, 60000), (12000, 12000), (9000, 9000)])
def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(InvalidRequestError, match=r"bomb\.png.*pixels"):
        load_picture(path)


def test_picture_over_the_callers_limit_is_refused():
    with pytest.raises(InvalidRequestError, match=r"64 x 32.*more than 2000"):
        load_picture(picture(32, 64), max_pixels=2000)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_truncated_picture_is_refused(tmp_path, format):
    path = tmp_path / f"cut.{format.lower()}"
    picture(200, 200).save(path, format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidRequestError, match="cut"):
        load_picture(path)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(InvalidRequestError, match=r"notes\.png is no picture"):
        load_picture(tmp_path / "notes.png")
    with pytest.raises(InvalidRequestError, match=r"no picture at .*gone\.png"):
        load_picture(tmp_path / "gone.png")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        load_picture(tmp_path)


def test_sixteen_bit_picture_is_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InvalidRequestError, match="8 bits"):
        load_picture(tmp_path / "deep.png")


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    loaded = load_picture(str(tmp_path / "clear.png"))
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == (255, 255, 255)


def test_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_picture(tmp_path / "turned.jpg").size == (4, 8)
