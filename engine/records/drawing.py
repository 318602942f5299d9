"""Drawing primitives of the pictures that are for people: rows of cells, text, heat."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, COLUMNS, GAP, LINE = 192, 4, 8, 16
WIDTH = GAP + COLUMNS * (CELL + GAP)
"""Pixels across a row of cells."""

FONT = ImageFont.load_default(12)
INK, FAINT, PAPER = "#1a1a1a", "#8a8a8a", "#ffffff"
_MISSING = (224, 224, 224)
_STOPS = (-1, 0, 1 / 3, 2 / 3, 1)
_HEAT = np.array([(33, 102, 172), (255, 255, 255), (254, 217, 118), (240, 59, 32), (90, 0, 30)], dtype=np.float64)


def heat(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 of values in [-1, 1]: blue, white at 0, yellow, red, dark red; grey for NaN."""
    missing = np.isnan(values)
    known = np.where(missing, 0, values)
    colours = np.stack([np.interp(known, _STOPS, channel) for channel in _HEAT.T], -1).round().astype(np.uint8)
    colours[missing] = _MISSING
    return colours


def mask_picture(mask: np.ndarray | None) -> Image.Image | None:
    """White where the mask (H, W) is true."""
    return None if mask is None else Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))


def label_picture(labels: np.ndarray | None) -> Image.Image | None:
    """A colour for each label, the golden angle apart, so that neighbouring numbers look different."""
    if labels is None:
        return None
    hues = (labels.astype(np.int64) * 97 % 256).astype(np.uint8)
    channels = [hues, np.full_like(hues, 150), np.full_like(hues, 220)]
    return Image.merge("HSV", [Image.fromarray(channel) for channel in channels])


def row_of_cells(cells: Sequence[Image.Image | str]) -> Image.Image:
    """Pictures side by side, or where a cell is text, the text; a row of texts alone is one line high."""
    titles = all(isinstance(cell, str) for cell in cells)
    picture, draw = canvas(LINE if titles else CELL + GAP)
    for column, cell in enumerate(cells):
        left = GAP + column * (CELL + GAP)
        if titles:
            draw.text((left, 0), str(cell), FAINT, FONT)
        elif isinstance(cell, str):
            draw.rectangle((left, 0, left + CELL - 1, CELL - 1), "#f0f0f0")
            draw.text((left + CELL // 2, CELL // 2), cell, FAINT, FONT, anchor="mm")
        else:
            picture.paste(fitted(cell), (left, 0))
    return picture


def fitted(picture: Image.Image, side: int = CELL) -> Image.Image:
    """Scale to a square cell: small pictures to hard squares, so that each pixel can be seen, large ones smoothly."""
    factor = side / max(picture.size)
    sampling = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    cell = Image.new("RGB", (side, side), "#f0f0f0")
    cell.paste(picture.convert("RGB").resize(size, sampling), ((side - size[0]) // 2, (side - size[1]) // 2))
    return cell


def canvas(height: int, width: int = WIDTH) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A blank band, as wide as a row of cells unless said, and the pen to draw on it."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider is broken."""
    lines = [""]
    for word in text.split():
        if lines[-1] and FONT.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while FONT.getlength(lines[-1]) > width:
            kept = next(n for n in range(len(lines[-1]) - 1, 0, -1) if n == 1 or FONT.getlength(lines[-1][:n]) <= width)
            lines[-1:] = [lines[-1][:kept], lines[-1][kept:]]
    return lines


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Bands below one another."""
    picture, _ = canvas(sum(row.height for row in rows) + GAP, max(row.width for row in rows))
    top = GAP
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture
