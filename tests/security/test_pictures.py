"""Pictures and masks as cameras, editors, other programs and malice leave them."""

import io
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.pixels import load_picture

pytestmark = pytest.mark.slow

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
ORIENTATION = 0x0112


def picture(size=(16, 8)):
    """Return noise of `size` (width, height)."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def written(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def outcome(path):
    """Return the picture at `path` or the message that refuses it; anything else is raised."""
    message = ""
    try:
        found = load_picture(path)
    except InvalidRequestError as error:
        message = str(error)
    if message:
        assert message.isprintable()
        return message
    assert found.mode == "RGB"
    assert not found.getexif()
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_mutated_files_are_read_or_refused(tmp_path, format):
    """Bytes changed, cut out, doubled and cut off, 60 times each."""
    whole, chance = written(picture((40, 30)), format), random.Random(format)
    for number in range(60):
        place, length = chance.randrange(len(whole)), chance.randrange(1, 9)
        noise = bytes(chance.randrange(256) for _ in range(length))
        for data in (
            whole[:place] + noise + whole[place + length :],
            whole[:place] + whole[place + length :],
            whole[:place] + whole[place : place + length] * 2 + whole[place + length :],
            whole[:place],
        ):
            path = tmp_path / f"{number}.img"
            path.write_bytes(data)
            outcome(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_and_nothing_else_is_kept(tmp_path, format, orientation):
    image = Image.new("RGB", (48, 32), "black")
    image.paste("white", (0, 0, 24, 16))
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F] = orientation, "a camera"
    image.save(tmp_path / "a", format, exif=exif)
    found = outcome(tmp_path / "a")
    assert found.size == ((48, 32) if orientation < 5 else (32, 48))
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    width, height = found.size
    white = {
        (x, y) for x in (0, 1) for y in (0, 1) if found.getpixel((2 + x * (width - 5), 2 + y * (height - 5)))[0] > 200
    }
    assert white == {corners[orientation]}
    assert not found.info


def tags(*entries, header=b"II*\0\x08\0\0\0"):
    """Tags of EXIF with these (tag, type, count, value) entries."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0" + header + body + b"\0\0\0\0"


DAMAGED = {
    "offset beyond the end": tags((0x8769, 4, 1, 10**6), (ORIENTATION, 3, 1, 6)),
    "cut": tags((ORIENTATION, 3, 1, 6))[:-9],
    "header alone": b"Exif\0\0II*\0",
    "no header": b"Exif\0\0rubbish!",
    "empty": b"Exif\0\0",
    "orientation as text": tags((ORIENTATION, 2, 4, 0x00363636)),
    "orientations": tags((ORIENTATION, 3, 2, 0x00060006)),
    "orientation of a type that there is not": tags((ORIENTATION, 99, 1, 6)),
    "orientation 0": tags((ORIENTATION, 3, 1, 0)),
    "orientation 9": tags((ORIENTATION, 3, 1, 9)),
    "orientation as a fraction": tags((ORIENTATION, 5, 1, 8)),
    "many": tags(*[(0x9000 + i, 7, 2**31, 2**31) for i in range(50)]),
    "a maker's note": tags((0x8769, 4, 1, 8), (0x927C, 7, 100, 2)),
    "a text of numbers": tags((0x010F, 3, 1, 7), (0x0132, 4, 5, 3)),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_tags_do_not_spoil_a_picture(tmp_path, format, damage):
    (tmp_path / "a").write_bytes(written(picture(), format, exif=DAMAGED[damage]))
    assert outcome(tmp_path / "a").size in ((16, 8), (8, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(tmp_path / "a")
    with opened:
        assert load_picture(opened).size in ((16, 8), (8, 16))


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG"])
def test_a_picture_opened_by_the_caller_and_cut_short_is_refused(format):
    data = written(picture((200, 200)), format)
    opened = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(InvalidRequestError, match="the picture cannot be read"):
        load_picture(opened)


def test_a_picture_whose_file_the_caller_closed_is_refused(tmp_path):
    picture().save(tmp_path / "a.png")
    opened = Image.open(tmp_path / "a.png")
    opened.close()
    with pytest.raises(InvalidRequestError, match="the picture cannot be read"):
        load_picture(opened)


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_eight_bits_is_read(mode):
    assert load_picture(Image.new(mode, (8, 4))).mode == "RGB"


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16B"])
def test_deeper_modes_are_refused_by_name(mode):
    with pytest.raises(InvalidRequestError, match=f"mode {mode}; save it with 8 bits"):
        load_picture(Image.new(mode, (8, 4)))


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(InvalidRequestError, match="none or more than"):
        load_picture(Image.new("RGB", size))


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp", "a.tiff"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert load_picture(tmp_path / name).getpixel((4, 4)) == (255, 0, 0), name


def test_a_palette_shorter_than_its_pixels_is_read_or_refused(tmp_path):
    image = Image.new("P", (8, 8), 200)
    image.putpalette([255, 0, 0])
    load_picture(image)
    data = written(image, "PNG", bits=8)
    (tmp_path / "a.png").write_bytes(data)
    outcome(tmp_path / "a.png")


def test_the_caller_keeps_its_picture():
    image = picture()
    found = load_picture(image)
    found.putpixel((0, 0), (1, 2, 3))
    assert image.tobytes() == picture().tobytes()
